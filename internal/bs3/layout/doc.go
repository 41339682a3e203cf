// Package layout holds every byte that reaches a store or chunk memory.
package layout
