package doctor

import (
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// Space is the room in a directory's file system.
type Space struct {
	// Name says what the directory is for.
	Name, Path string
	// Free and Total count bytes, Files and AllFiles how many more files can
	// be made and how many there can be; AllFiles is 0 where there is no limit.
	Free, Total     int64
	Files, AllFiles int64
	Err             error
}

const (
	// A file system with less than this in bytes is full to a daemon.
	spaceNeeded = 256 << 20
	// One with less than a twentieth free will soon be.
	spaceShare = 20
	mebibyte   = 1 << 20
)

// LookAtSpace asks the file system.
func LookAtSpace(name, path string) Space {
	s := Space{Name: name, Path: path}
	var st unix.Statfs_t
	if s.Err = unix.Statfs(path, &st); s.Err == nil {
		s.Free, s.Total = int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
		s.Files, s.AllFiles = int64(st.Ffree), int64(st.Files)
	}
	return s
}

// Judge is an error when nothing more fits.
func (s Space) Judge() []Finding {
	if s.Err != nil {
		return []Finding{unknown("space", fmt.Errorf("looking at %s: %w", s.Path, s.Err))}
	}
	remedy := fmt.Sprintf("du -xh --max-depth=2 %s | sort -h | tail   # then podctl ps -a and podctl rm POD, podctl image ls and podctl image rm, or a larger disk", s.Path)
	detail := fmt.Sprintf("%s has %d of %d MiB free for %s", s.Path, s.Free/mebibyte, s.Total/mebibyte, s.Name)
	switch {
	case s.Free < min(spaceNeeded, s.Total/4):
		return []Finding{Bad("space", remedy, "%s", detail)}
	case s.AllFiles > 0 && s.Files < s.AllFiles/100:
		return []Finding{Bad("space", remedy, "%s has no room for more files: %d of %d can still be made", s.Path, s.Files, s.AllFiles)}
	case s.Free < s.Total/spaceShare:
		return []Finding{Worry("space", remedy, "%s", detail)}
	}
	return []Finding{Good("space", "%s", detail)}
}

// Memory is the machine's.
type Memory struct {
	// Available is what programs can still take, in bytes (MemAvailable of
	// proc(5)).
	Available, Total int64
	Err              error
}

// LookAtMemory reads /proc/meminfo.
func LookAtMemory() (m Memory) {
	m.Total, m.Available, m.Err = procfs.Memory()
	return m
}

// Judge is a warning when a move here would hardly find room: its images are in
// memory, once more what the pod has.
func (m Memory) Judge() []Finding {
	if m.Err != nil {
		return []Finding{unknown("memory", m.Err)}
	}
	detail := fmt.Sprintf("%d of %d MiB are available", m.Available/mebibyte, m.Total/mebibyte)
	const remedy = "ps -eo rss,pid,args --sort=-rss | head   # then podctl move POD HOST to one with more"
	switch {
	case m.Available < min(spaceNeeded, m.Total/10):
		return []Finding{Bad("memory", remedy, "%s: a pod can hardly be started or moved here", detail)}
	case m.Available < m.Total/10:
		return []Finding{Worry("memory", remedy, "%s; a pod that moves here needs twice its size for a moment", detail)}
	}
	return []Finding{Good("memory", "%s", detail)}
}

// Certificate is a daemon's own.
type Certificate struct {
	// Of is whose it is.
	Of                  string
	NotBefore, NotAfter time.Time
	// Issuers are the addresses it is renewed at.
	Issuers []string
	Now     time.Time
	// Command is the daemon's name.
	Command string
}

// CertificateOf is about one that was parsed.
func CertificateOf(c *x509.Certificate, of, command string, issuers []string) Certificate {
	return Certificate{Of: of, NotBefore: c.NotBefore, NotAfter: c.NotAfter, Issuers: issuers, Now: time.Now(), Command: command}
}

// certificateWorry is how long before its end a certificate should have been
// renewed long since: daemons try from a third of its life on, which is a week
// unless the issuer says otherwise. Of a shorter life it is the last third.
const certificateWorry = 24 * time.Hour

// Judge is an error when it has ended, or has not begun.
func (c Certificate) Judge() []Finding {
	left := c.NotAfter.Sub(c.Now)
	remedy := fmt.Sprintf("podctl cluster join-token --name %s > token   # where podctl still works; then here: %s --join @token", c.Of, c.Command)
	if c.Command == "podproxy" {
		remedy = strings.Replace(remedy, "--name", "--kind proxy --name", 1)
	}
	switch {
	case c.Now.Before(c.NotBefore):
		return []Finding{Bad("certificate", "timedatectl set-ntp true   # the clock is wrong, here or where the certificate was made",
			"it begins to be good at %s, and it is %s here", c.NotBefore.Format(time.RFC3339), c.Now.Format(time.RFC3339))}
	case left <= 0:
		return []Finding{Bad("certificate", remedy, "it ended at %s: no other daemon talks to this one", c.NotAfter.Format(time.RFC3339))}
	case left < min(certificateWorry, c.NotAfter.Sub(c.NotBefore)/3):
		return []Finding{Worry("certificate", fmt.Sprintf("journalctl -u %s -g renew   # is one of %v up, and reachable from here?", c.Command, c.Issuers),
			"it ends in %s and should have been renewed long ago", left.Round(time.Minute))}
	}
	return []Finding{Good("certificate", "it is good for %d hours and renewed in time", int(left.Hours()))}
}
