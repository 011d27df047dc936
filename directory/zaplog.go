package directory

import (
	"context"
	"log/slog"
	"sync/atomic"

	"go.uber.org/zap/zapcore"
)

// slogCore hands etcd's log (zap) to ours. etcd tells its life story at level
// info, which is of use for debugging only, so everything below a warning
// becomes debug; cap lowers even what is above. What it says at its own level
// debug is left out: it quotes records, and pods' environments are in them.
type slogCore struct {
	log *slog.Logger
	cap zapcore.Level
	// serving, if not nil, says whether etcd is up. Before, a failure is
	// returned and needs no log; afterwards, failures are to be expected.
	serving *atomic.Bool
}

func (c slogCore) level(l zapcore.Level) slog.Level {
	if c.serving != nil && !c.serving.Load() {
		return slog.LevelDebug
	}
	switch l = min(l, c.cap); {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l >= zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}

func (c slogCore) Enabled(l zapcore.Level) bool {
	return l > zapcore.DebugLevel && c.log.Enabled(context.Background(), c.level(l))
}

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	c.log = slog.New(c.log.Handler().WithAttrs(attrs(fields)))
	return c
}

// harmless are what a new etcd reports, as an error, until its first change is
// on disk.
var harmless = map[string]bool{
	"Failed to detect schema version":  true,
	"failed to update storage version": true,
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !harmless[e.Message] {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.LogAttrs(context.Background(), c.level(e.Level), e.Message, attrs(fields)...)
	return nil
}

func (slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	out := make([]slog.Attr, 0, len(fields))
	for _, f := range fields {
		f.AddTo(enc)
		out = append(out, slog.Any(f.Key, enc.Fields[f.Key]))
	}
	return out
}
