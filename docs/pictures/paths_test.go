package main

import (
	"os"
	"testing"
)

func TestPictureIsCurrent(t *testing.T) {
	kept, err := os.ReadFile("paths.svg")
	if err != nil {
		t.Fatal(err)
	}
	if string(kept) != paths() {
		t.Error("paths.svg is not what paths.go draws: make picture")
	}
}
