package dir

// BreakOpen makes everything that l has open useless, as it is after the file
// system has gone away.
func BreakOpen(l *Lasting) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.use.store.root.Close()
}
