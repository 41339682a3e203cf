package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"bs3/internal/config"
)

// addJSON adds the flag for programs to cmd.
func addJSON(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "for programs; sizes are bytes")
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// rows returns a function that prints one line of a table with two columns.
func rows(w io.Writer) func(name, format string, args ...any) {
	return func(name, format string, args ...any) {
		fmt.Fprintf(w, name+"\t"+format+"\n", args...)
	}
}

// share formats part as a percentage of whole. What is counted while it changes
// may be a little less than nothing, or more than all.
func share(part, whole int64) string {
	if whole <= 0 {
		return "0 %"
	}
	return fmt.Sprintf("%.0f %%", 100*float64(min(max(part, 0), whole))/float64(whole))
}

// size formats n bytes for people.
func size(n int64) string {
	switch {
	case n >= config.GB && n%config.GB == 0:
		return fmt.Sprintf("%d GB", n/config.GB)
	case n >= config.GB:
		return fmt.Sprintf("%.2f GB", float64(n)/config.GB)
	case n >= config.MB:
		return fmt.Sprintf("%.4g MB", float64(n)/config.MB)
	}
	return fmt.Sprintf("%d B", n)
}
