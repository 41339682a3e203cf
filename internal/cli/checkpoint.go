package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"bs3/internal/daemon"
)

func newCheckpoint(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "checkpoint",
		Short: "Have the running daemon write its map to the store, and wait for it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.call(cmd, daemon.CallCheckpoint, nil, nil); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "checkpoint written")
			return err
		},
	}
}
