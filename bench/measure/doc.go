// Package measure takes samples of several contenders in turns and describes
// them by their quartiles. It knows nothing of what is measured, or how.
package measure
