// Package tools pins s5cmd: `go install NAME@VERSION` asks for a list of versions, which not every module proxy has.
package tools

import _ "github.com/peak/s5cmd/v2/command"
