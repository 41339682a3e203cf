package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"bs3/internal/bs3"
	"bs3/internal/bs3/objproxy"
	"bs3/internal/config"
)

// infoFor bounds how long info tries again when the store does not answer. A
// person waits for it, not a device.
const infoFor = 30 * time.Second

func newInfo(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Say what volume the store holds; changes nothing and disturbs no daemon",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			info, err := a.info(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(info)
			}
			return printInfo(cmd.OutOrStdout(), info)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "for programs; sizes are bytes")
	return cmd
}

func (a *app) info(cmd *cobra.Command) (_ *bs3.VolumeInfo, err error) {
	c, err := a.config(cmd)
	if err != nil {
		return nil, err
	}
	if c.Null {
		return nil, errors.New("null = true: there is no store to ask")
	}
	if c.Store == config.StoreDir {
		// Opening the store would make its directory.
		if _, err := os.Stat(c.Dir.Path); err != nil {
			return nil, fmt.Errorf("%w: %w", bs3.ErrNoVolume, err)
		}
	}
	ctx, stop := watchSignals(cmd.Context(), zerolog.Nop(), func() { os.Exit(exitOther) }) //nolint:forbidigo // the user will not wait
	defer stop()
	s, err := openStore(ctx, c, toAsk, zerolog.Nop())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	trying, cancel := withLimit(ctx, infoFor)
	defer cancel()
	return readInfo(ctx, trying, s)
}

// readInfo asks the store, again after an answer that may change until trying
// ends. How long a good answer takes depends on the length of the log.
func readInfo(ctx, trying context.Context, s *store) (info *bs3.VolumeInfo, err error) {
	var final error
	err = keepTrying(trying, s.where, zerolog.Nop(), func() error {
		info, final = bs3.Info(ctx, s)
		if errors.Is(final, objproxy.ErrTransient) {
			return final
		}
		return nil
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", s.where, err)
	case errors.Is(final, bs3.ErrNoVolume) || errors.Is(final, bs3.ErrRefused):
		return nil, fmt.Errorf("%s: %w", s.where, final)
	case final != nil:
		return nil, fmt.Errorf("%w: %s: %w", errStore, s.where, final)
	}
	return info, nil
}

func printInfo(out io.Writer, v *bs3.VolumeInfo) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, name+"\t"+format+"\n", args...)
	}
	row("volume", "%v", v.UUID)
	row("size", "%s", size(v.Size))
	row("block size", "%d B", v.BlockSize)
	row("chunk size", "%s", size(int64(v.ChunkSize)))
	row("format", "%d", v.Format)
	row("created", "%s", v.Created.Format(time.RFC3339))
	if v.Deleted {
		row("deleted", "yes")
	}
	state := "not released: it is running, or it died"
	if v.Writer.Released {
		state = "released"
	}
	row("epoch", "%d, %s", v.Epoch, state)
	row("writer", "%s (machine %s), pid %d, since %s, state %s", v.Writer.Host, v.Writer.Machine, v.Writer.PID,
		v.Writer.Since.Format(time.RFC3339), v.Writer.StatePath)
	row("checkpoints", "%d", len(v.Checkpoints))
	row("as of the newest", "%d objects, %s of data, %s of it live", v.Objects, size(v.StoredBytes), size(v.LiveBytes))
	row("log after it", "%d objects, %s of data", v.LogObjects, size(v.LogBytes))
	return w.Flush()
}

// size is n bytes for people.
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
