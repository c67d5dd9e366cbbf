package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/net/http2"
)

// outcome is what a client prints. Stage is how far it came: dial, tls, connect, request, done.
type outcome struct {
	Stage        string `json:"stage"`
	Error        string `json:"error,omitempty"`
	Status       int    `json:"status,omitempty"`
	ServerID     string `json:"server_id,omitempty"`
	TLSVersion   string `json:"tls_version,omitempty"`
	AnswerStatus int    `json:"answer_status,omitempty"`
	Answer       string `json:"answer,omitempty"`
	Echoed       int64  `json:"echoed,omitempty"`
}

func client(args []string) error {
	fs := flag.NewFlagSet("client", flag.ExitOnError)
	certs := addCertFlags(fs)
	dial := fs.String("dial", "", "the HBONE listener, IP:15008")
	authority := fs.String("authority", "", "the destination, IP:PORT")
	expect := fs.String("expect", "", "the server's SPIFFE id; any if empty")
	get := fs.String("get", "", "send an HTTP/1.1 GET for this path through the tunnel")
	send := fs.Int64("send", 0, "send so many bytes to an echoing server, half-close, and count what returns")
	method := fs.String("method", http.MethodConnect, "the outer request's method")
	tlsMax := fs.String("tls-max", "1.3", "1.2 or 1.3")
	timeout := fs.Duration("timeout", 10*time.Second, "for the whole")
	_ = fs.Parse(args)

	out := outcome{Stage: "dial"}
	refused := func(err error) {
		out.Error = err.Error()
		printJSON(out)
		os.Exit(3)
	}
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", *dial)
	if err != nil {
		refused(err)
	}
	deadline, _ := ctx.Deadline()
	_ = raw.SetDeadline(deadline)

	out.Stage = "tls"
	roots, err := certs.roots()
	if err != nil {
		return err
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		// The name is a SPIFFE id, which the standard library does not verify: verifier does.
		InsecureSkipVerify:    true,
		VerifyPeerCertificate: verifier(roots, *expect, &out.ServerID),
	}
	if *tlsMax == "1.2" {
		config.MaxVersion = tls.VersionTLS12
	}
	if !*certs.none {
		leaf, err := certs.leaf()
		if err != nil {
			return err
		}
		config.Certificates = []tls.Certificate{*leaf}
	}
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		refused(err)
	}
	out.TLSVersion = tls.VersionName(conn.ConnectionState().Version)

	// In TLS 1.3 a server's refusal of our certificate arrives with the first read.
	out.Stage = "connect"
	h2, err := (&http2.Transport{}).NewClientConn(conn)
	if err != nil {
		refused(err)
	}
	reader, writer := io.Pipe()
	req := (&http.Request{
		Method: *method, URL: &url.URL{Scheme: "https", Host: *authority, Path: "/"}, Host: *authority,
		Header: http.Header{}, Body: reader, ContentLength: -1,
	}).WithContext(ctx)
	if *method == http.MethodConnect {
		req.URL = &url.URL{Host: *authority}
	}
	resp, err := h2.RoundTrip(req)
	if err != nil {
		refused(err)
	}
	out.Status = resp.StatusCode
	if resp.StatusCode != http.StatusOK {
		refused(fmt.Errorf("CONNECT answered %s", resp.Status))
	}

	out.Stage = "request"
	switch {
	case *get != "":
		fmt.Fprintf(writer, "GET %s HTTP/1.1\r\nHost: peer.test\r\nConnection: close\r\n\r\n", *get)
		answer, err := http.ReadResponse(bufio.NewReader(resp.Body), nil)
		if err != nil {
			refused(err)
		}
		body, err := io.ReadAll(answer.Body)
		if err != nil {
			refused(err)
		}
		out.AnswerStatus, out.Answer = answer.StatusCode, string(body)
	case *send > 0:
		go func() {
			_, err := io.CopyN(writer, zeros{}, *send)
			writer.CloseWithError(err) // nil: half-close
		}()
		out.Echoed, err = io.Copy(io.Discard, resp.Body)
		if err != nil {
			refused(err)
		}
		if out.Echoed != *send {
			refused(fmt.Errorf("sent %d bytes, got %d back", *send, out.Echoed))
		}
	}
	out.Stage = "done"
	printJSON(out)
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
