// Package cli is the command line, a file per command. It alone knows signals,
// exit codes and the standard streams.
package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"bs3/contrib"
	"bs3/internal/config"
)

// Main runs the command in args and returns its exit code.
func Main(version string, args []string) int {
	root := newRoot(&app{version: version})
	root.SetArgs(args)
	err := root.ExecuteContext(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "bs3:", err)
	}
	return exitCode(err)
}

// app is what the commands share.
type app struct {
	version  string
	path     string // of the configuration file
	local    bool   // use the built-in configuration, for a trial
	takeover bool   // as if the configuration said takeover = "auto"
	forget   bool   // open without the local log that the volume may need
	snapshot string // that is served instead of the volume
	listen   string // where; empty = the usual place
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "bs3",
		Short: "A block device whose bytes live in an object store",
		Long: "bs3 gives Linux a block device whose bytes live in an object store: S3 or a\n" +
			"directory. Without a command it runs the daemon, which shows the device as the key\n" +
			"transport says: as /dev/ublkbN, /dev/nbdN or /dev/buseN, or over NBD.",
		Args:          cobra.NoArgs,
		RunE:          a.run,
		SilenceErrors: true, // Main prints them
		SilenceUsage:  true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVarP(&a.path, "config", "c", config.DefaultPath, "configuration file")
	root.PersistentFlags().BoolVar(&a.local, "local", false,
		"try bs3 with a volume of 8 GB in the directory .bs3; run prints what to do with it")
	root.MarkFlagsMutuallyExclusive("config", "local")
	run := &cobra.Command{Use: "run", Short: "Run the daemon until SIGINT or SIGTERM", Args: cobra.NoArgs, RunE: a.run}
	for _, daemon := range []*cobra.Command{root, run} {
		daemon.Flags().BoolVar(&a.takeover, "takeover", false,
			"open the volume even if another host did not release it, and fence off that host")
		daemon.Flags().BoolVar(&a.forget, "forget-local-log", false,
			"open the volume even if a local log that is not here may hold flushed writes, which are then lost")
		daemon.Flags().StringVar(&a.snapshot, "snapshot", "",
			"serve the snapshot `NAME` instead of the volume, read-only and by NBD alone; the daemon of the volume may run meanwhile")
		daemon.Flags().StringVar(&a.listen, "listen", "",
			"with --snapshot, the `ADDRESS` to serve it at, unix:PATH or tcp:HOST:PORT; by default the socket of nbd.listen with .NAME behind its path")
		daemon.MarkFlagsMutuallyExclusive("snapshot", "takeover")
		daemon.MarkFlagsMutuallyExclusive("snapshot", "forget-local-log")
	}
	root.AddCommand(
		run,
		newInfo(a),
		newStatus(a),
		newGC(a),
		newCheckpoint(a),
		newSnapshot(a),
		newFsck(a),
		&cobra.Command{Use: "version", Short: "Print the version", Args: cobra.NoArgs, RunE: a.printVersion},
	)
	addHelp(root)
	root.SetHelpCommand(newHelp(root))
	return root
}

func (a *app) printVersion(cmd *cobra.Command, _ []string) error {
	_, err := fmt.Fprintln(cmd.OutOrStdout(), "bs3", a.version)
	return err
}

// config reads the configuration that the flags name.
func (a *app) config(cmd *cobra.Command) (config.Config, error) {
	if a.local {
		return config.Parse(contrib.LocalName, contrib.Local())
	}
	return config.Load(a.path, cmd.Flags().Changed("config"))
}

// newHelp is cobra's command of that name, but refuses what it knows nothing of.
func newHelp(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about any command",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return fmt.Errorf("there is no command %q; bs3 help lists them", strings.Join(args, " "))
			}
			cmd.InitDefaultHelpFlag() // cobra does it when a command runs
			return cmd.Help()
		},
	}
}

// addHelp appends the environment variables and the exit codes to the help of
// the root command.
func addHelp(root *cobra.Command) {
	usual := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		usual(cmd, args)
		if !cmd.HasParent() {
			printVariables(cmd.OutOrStdout())
			printExits(cmd.OutOrStdout())
		}
	})
}

func printVariables(w io.Writer) {
	fmt.Fprintf(w, "\nThe configuration is read from the file and then from the environment (key, default):\n")
	for _, v := range config.Variables() {
		fmt.Fprintf(w, "  %s (%s, %s)\n    \t%s\n", v.Env, v.Key, v.Default, v.Doc)
	}
}

func printExits(w io.Writer) {
	fmt.Fprintf(w, "\nExit codes:\n")
	for _, e := range exits() {
		fmt.Fprintf(w, "  %2d  %s\n", e.code, e.meaning)
	}
}
