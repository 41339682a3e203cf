package cli

import (
	"io"
	"time"

	"github.com/rs/zerolog"

	"bs3/internal/config"
)

// newLogger makes the logger that c asks for. Nothing global is set.
func newLogger(w io.Writer, c config.Log, color bool) zerolog.Logger {
	if c.Pretty {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.DateTime, NoColor: !color}
	}
	return zerolog.New(w).Level(zerolog.Level(c.Level)).With().Timestamp().Logger()
}
