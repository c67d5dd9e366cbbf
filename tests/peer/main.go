// hbone-peer is an independent implementation of HBONE for weft's tests: HTTP/2 CONNECT on Go's
// own HTTP/2 and TLS, sharing no code with weft. It signs its certificates itself, from a root
// that the test names, so it can also present what weft must refuse.
//
//	hbone-peer client --dial IP:15008 --authority IP:PORT [certificate flags] [--expect ID] [--get PATH] [--send N]
//	hbone-peer server --listen IP:15008 [certificate flags] [--allow ID]
//	hbone-peer sign   --out-cert F --out-key F [certificate flags]
//
// It prints one JSON object. Exit code 0: the tunnel worked; 3: it was refused (the JSON says how
// far it came); 1: anything else.
package main

import (
	"encoding/json"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: hbone-peer client|server|sign …")
		os.Exit(2)
	}
	var err error
	switch os.Args[1] {
	case "client":
		err = client(os.Args[2:])
	case "server":
		err = server(os.Args[2:])
	case "sign":
		err = sign(os.Args[2:])
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "hbone-peer:", err)
		os.Exit(1)
	}
}

func printJSON(v any) {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err) // only our own plain structs come here
	}
	fmt.Println(string(out))
}
