// Go's HTTP servers and clients over TLS, with the idle timeouts of either end.
//
//	peer serve CERTIFICATE KEY SPEC...   prints "ready", runs until it is ended
//	peer get SPEC...                     two requests for each, then its idle time
//
// A spec is ADDRESS,TLS,PROTOCOL,SERVER_IDLE,CLIENT_IDLE,PING, the same for both ends; 0s is "never".
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// A body that makes an HTTP/2 client send WINDOW_UPDATE.
var body = make([]byte, 200_000)

type spec struct {
	address, protocol               string
	version                         uint16
	serverIdle, clientIdle, pinging time.Duration
}

func parse(text string) spec {
	field := strings.Split(text, ",")
	version := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[field[1]]
	var idle [3]time.Duration
	for i := range idle {
		var err error
		idle[i], err = time.ParseDuration(field[3+i])
		check(err)
	}
	return spec{field[0], field[2], version, idle[0], idle[1], idle[2]}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func serve(certificate, key string, specs []string) {
	listening := []func() error{}
	for _, text := range specs {
		spec := parse(text)
		server := &http.Server{
			Handler:     http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }),
			IdleTimeout: spec.serverIdle,
			TLSConfig:   &tls.Config{MinVersion: spec.version, MaxVersion: spec.version},
		}
		if spec.protocol == "HTTP/1.1" {
			server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
		}
		listener, err := net.Listen("tcp", spec.address)
		check(err)
		listening = append(listening, func() error { return server.ServeTLS(listener, certificate, key) })
	}
	fmt.Println("ready")
	for _, run := range listening {
		go func(run func() error) { check(run()) }(run)
	}
	select {}
}

func get(spec spec) {
	transport := &http.Transport{
		IdleConnTimeout: spec.clientIdle,
		TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true,
			MinVersion:         spec.version,
			MaxVersion:         spec.version,
		},
	}
	if spec.protocol == "HTTP/2.0" {
		h2, err := http2.ConfigureTransports(transport)
		check(err)
		h2.ReadIdleTimeout = spec.pinging
	}
	for i := 0; i < 2; i++ {
		response, err := (&http.Client{Transport: transport}).Get("https://" + spec.address + "/")
		check(err)
		if response.Proto != spec.protocol {
			log.Fatalf("%s instead of %s", response.Proto, spec.protocol)
		}
		_, err = io.Copy(io.Discard, response.Body)
		check(err)
		check(response.Body.Close())
		time.Sleep(400 * time.Millisecond)
	}
	// The idle timeout of a second, and another second that Go's HTTP/2 server takes to leave.
	time.Sleep(2500 * time.Millisecond)
}

func main() {
	if os.Args[1] == "serve" {
		serve(os.Args[2], os.Args[3], os.Args[4:])
	}
	var all sync.WaitGroup
	for _, text := range os.Args[2:] {
		all.Add(1)
		go func(spec spec) {
			get(spec)
			all.Done()
		}(parse(text))
	}
	all.Wait()
}
