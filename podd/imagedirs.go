package podd

import (
	"path/filepath"
	"strings"

	"podd/namespace"
	"podd/pod"
)

// imagesKind says whose a directory of images is. Every directory in
// imagesDir is named KIND-NAME.EPOCH: whose it is can be told without any
// record, and so whether anybody still needs it.
type imagesKind string

const (
	// sourceImages are what a dump writes here.
	sourceImages imagesKind = "source"
	// targetImages belong to a pod that comes here. As long as they are there
	// it has not run here yet.
	targetImages imagesKind = "target"
	// usedImages are targetImages of a pod that runs, about to be removed.
	usedImages imagesKind = "used"
	// memoryImages is the directory of the pager of a pod that comes here, or has
	// come and does not have all its memory yet.
	memoryImages imagesKind = "memory"
)

// imagesOf is the directory for images of one incarnation: for source, the one
// that is dumped, for target the one that is restored.
func (d *Daemon) imagesOf(kind imagesKind, name string, epoch pod.Epoch) string {
	return filepath.Join(d.imagesDir(), string(kind)+"-"+namespace.ID(name, epoch))
}

// parseImages is the inverse of imagesOf, for the last element of its path.
func parseImages(base string) (kind imagesKind, of incarnation, ok bool) {
	head, id, _ := strings.Cut(base, "-")
	name, epoch, ok := namespace.ParseID(id)
	return imagesKind(head), incarnation{name, epoch}, ok
}
