package image

// Limits bound what one import may ask of the host. Zero fields take the
// default.
type Limits struct {
	// Layers is the most layers an image may have. The default is Docker's.
	Layers int
	// Entries is the most files, directories and links in one layer.
	Entries int
	// LayerBytes is the most bytes the uncompressed tar stream of one layer,
	// and the content of its files, may have.
	LayerBytes int64
	// ArchiveBytes is the most bytes a compressed archive may expand to.
	ArchiveBytes int64
	// MetadataBytes is the most bytes of an index, manifest or configuration.
	MetadataBytes int64
}

// DefaultLimits fit the largest images in common use several times over.
var DefaultLimits = Limits{
	Layers:        127,
	Entries:       2_000_000,
	LayerBytes:    64 << 30,
	ArchiveBytes:  256 << 30,
	MetadataBytes: 8 << 20,
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits
	if l.Layers > 0 {
		d.Layers = l.Layers
	}
	if l.Entries > 0 {
		d.Entries = l.Entries
	}
	if l.LayerBytes > 0 {
		d.LayerBytes = l.LayerBytes
	}
	if l.ArchiveBytes > 0 {
		d.ArchiveBytes = l.ArchiveBytes
	}
	if l.MetadataBytes > 0 {
		d.MetadataBytes = l.MetadataBytes
	}
	return d
}
