package lab

import "net/netip"

// NodeStatus is what can be said of one node.
type NodeStatus struct {
	Node    string     `json:"node"`
	Address netip.Addr `json:"address,omitzero"`
	// Namespace is the file of its network namespace.
	Namespace string `json:"namespace"`
	// Daemon is "podd", "podproxy" or empty; PID its process, 0 when it does
	// not run; Log its log file.
	Daemon string `json:"daemon,omitempty"`
	PID    int    `json:"pid,omitempty"`
	Log    string `json:"log,omitempty"`
	// Socket is where podctl reaches the daemon.
	Socket string `json:"socket,omitempty"`
}

// Status describes every node, in the order of Nodes.
func (l *Lab) Status() ([]NodeStatus, error) {
	var all []NodeStatus
	for _, node := range l.Nodes() {
		s := NodeStatus{Node: node, Address: l.Address(node), Namespace: l.Namespace(node)}
		switch {
		case node == Proxy:
			s.Daemon = "podproxy"
		case l.isHost(node):
			s.Daemon = "podd"
		}
		if s.Daemon != "" {
			s.Log, s.Socket = l.LogPath(node), l.Socket(node)
			var err error
			if s.PID, err = l.PID(node); err != nil {
				return nil, err
			}
		}
		all = append(all, s)
	}
	return all, nil
}
