package recovery

// row is one of the table: moments for which everybody does the same.
type row struct {
	moments []string
	cells   map[Victim]cell
}

// cell is what becomes of the pod, and what each survivor does.
type cell struct {
	outcomes map[Fault]Outcome
	does     string
}

// always is for victims that make no difference, however they fail.
func always(o Outcome) map[Fault]Outcome { return outcomes(o, o, o, o) }

func outcomes(kill, stop, full, cut Outcome) map[Fault]Outcome {
	return map[Fault]Outcome{Kill: kill, Stop: stop, Full: full, Cut: cut}
}

// table is the table. A victim that stands still for 5 s is waited for; one that
// is cut off for longer than its lease is given up.
var table = []row{
	{[]string{"preflight"}, map[Victim]cell{
		Source: {outcomes(Stays, Goes, Stays, Stays), "Nothing was begun"},
		Target: {outcomes(Stays, Goes, Stays, Stays), "The source says that the target does not answer, or has no space"},
		Proxy:  {always(Goes), "Nobody needs it yet"},
		Directory: {outcomes(Goes, Either, Either, Stays),
			"What is asked of it is repeated for 5 s, then the command fails. etcd ends when it can't write, and goes on where it was when it is started again"},
	}},
	{[]string{"reserve", "presync"}, map[Victim]cell{
		Source: {outcomes(Stays, Goes, Stays, Stays),
			"The pod never stopped. Target: the connection ends, or the source's lease; it removes its reservation and aborts the move. Source, restarted: takes the pod over"},
		Target: {outcomes(Stays, Goes, Stays, Stays),
			"Source: the connection ends, or the target's lease; it aborts the move, the pod never stopped. Target, restarted: removes the reservation"},
		Proxy:     {always(Goes), "The hold is asked for in vain: clients send again what is lost meanwhile"},
		Directory: {outcomes(Goes, Either, Either, Either), "Without an answer for 5 s there is no hold, and the move fails; to write a stage into the journal is not worth that"},
	}},
	{[]string{"hold"}, map[Victim]cell{
		Source:    {outcomes(Stays, Goes, Stays, Stays), "As above. The proxy's hold ends with the move"},
		Target:    {outcomes(Stays, Goes, Stays, Stays), "As above"},
		Proxy:     {always(Goes), "As above. podproxy, restarted: holds what the journal says is held"},
		Directory: {outcomes(Goes, Either, Either, Stays), "As above"},
	}},
	{[]string{"freeze", "dump"}, map[Victim]cell{
		Source: {outcomes(Stays, Goes, Stays, Stays),
			"The pod is frozen: CRIU lets go of it, the cgroup and the block of its NIC stay. Target: as above. Source, restarted: mends sockets, unblocks, thaws. Full: the dump fails, CRIU puts everything back"},
		Target:    {outcomes(Stays, Goes, Stays, Stays), "Source: thaws at once, then aborts the move"},
		Proxy:     {always(Goes), "Until the release nobody needs it"},
		Directory: {outcomes(Goes, Goes, Either, Either), "The source goes on: until the commit nothing is asked. Then as for the commit"},
	}},
	{[]string{"transfer", "restore"}, map[Victim]cell{
		Source:    {outcomes(Stays, Goes, Goes, Stays), "As above; the images are on the source's disk already"},
		Target:    {outcomes(Stays, Goes, Stays, Stays), "As above"},
		Proxy:     {always(Goes), "As above"},
		Directory: {outcomes(Goes, Either, Either, Either), "As above"},
	}},
	{[]string{"restore asked for"}, map[Victim]cell{
		Source: {outcomes(Either, Goes, Goes, Goes), "Target: goes on and commits, unless it lacks memory for the restore (post-copy): then it gives up. " +
			"Source, restarted: if committed kills the frozen copy in silence, else it aborts and thaws it"},
		Target:    {outcomes(Either, Goes, Either, Either), "Source: aborts, and thaws only when the directory has said so. Target, restarted: CRIU has killed the copy with podd; removes the rest"},
		Proxy:     {always(Goes), "As above"},
		Directory: {outcomes(Goes, Either, Either, Either), "Both copies stand still until the directory answers; who asks first wins"},
	}},
	{[]string{"commit"}, map[Victim]cell{
		Source:    {outcomes(Either, Goes, Goes, Goes), "As above"},
		Target:    {outcomes(Stays, Goes, Goes, Stays), "As above"},
		Proxy:     {always(Goes), "As above"},
		Directory: {outcomes(Goes, Either, Either, Either), "As above"},
	}},
	{[]string{"committed"}, map[Victim]cell{
		Source: {always(Goes), "Target: runs the pod. Source, restarted: kills the frozen copy in silence, closes the move without a receipt"},
		Target: {always(Goes),
			"Source: learns of the commit and kills its copy in silence. Target, restarted: restores the pod once more from the images, which it keeps until the pod runs"},
		Proxy:     {always(Goes), "Target: runs the pod. podproxy, restarted: switches the route, and what queued goes to the new label"},
		Directory: {always(Goes), "Target: runs the pod. The proxy sees the commit when it sees the directory"},
	}},
	{[]string{"release"}, map[Victim]cell{
		Source:    {always(Goes), "Target: the pod runs. Source, restarted: removes what is left"},
		Target:    {always(Goes), "Source: done. Target, restarted: finds the pod"},
		Proxy:     {always(Goes), "As above"},
		Directory: {always(Goes), "The source repeats the end of the move until the directory takes it"},
	}},
	{[]string{"memory"}, map[Victim]cell{
		Source: {always(Goes),
			"The frozen copy stays as it is. Target: the pod stands still if it needs memory that it has not got. Source, restarted: gives the rest, then kills the copy in silence. " +
				"Gone for good: the pod stays frozen, `podctl rm --force` gives it up, and `podctl host rm`, refused before, closes the move"},
		Target: {always(Goes),
			"The pager goes on, and so does the pod. Source: keeps the copy until the pager or the directory says that all has come. Target, restarted: takes over pod and pager"},
		Proxy:     {always(Goes), "Nobody needs it"},
		Directory: {always(Goes), "The memory crosses without it. Both repeat what they have to say until the directory takes it"},
	}},
}
