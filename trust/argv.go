package trust

import (
	"os"
	"strings"
	"unsafe"
)

// HideArgument overwrites a secret among the arguments of this process, so that
// ps(1) shows it for no longer than the process needs to get here. What of
// os.Args has the secret, or is "--flag=" and the secret, is no more what it
// was; secret itself may be a part of it, so it is of no use afterwards. What
// only says where the secret is (@FILE, -) stays; see ReadToken.
//
// The strings of os.Args are in the memory that the kernel shows as
// /proc/PID/cmdline: the runtime makes no copies of them.
func HideArgument(secret string) {
	if secret == "" || secret == "-" || secret[0] == '@' {
		return
	}
	for _, argument := range os.Args[1:] {
		if argument != secret && !strings.HasSuffix(argument, "="+secret) {
			continue
		}
		memory := unsafe.Slice(unsafe.StringData(argument), len(argument))
		for i := len(argument) - len(secret); i < len(argument); i++ {
			memory[i] = 'x'
		}
	}
}
