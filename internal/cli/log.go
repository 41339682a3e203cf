package cli

import (
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"

	"bs3/internal/config"
)

// newLogger makes the logger that c asks for. It sets nothing global.
func newLogger(w io.Writer, c config.Log, color bool) zerolog.Logger {
	if c.Pretty {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.DateTime, NoColor: !color}
	}
	return zerolog.New(w).Level(zerolog.Level(c.Level)).With().Timestamp().Logger()
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
