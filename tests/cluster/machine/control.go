package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"
)

// One request and one answer a connection, each a line of JSON. Of a request one field is set.
type request struct {
	Start *Unit  `json:"start,omitempty"`
	Stop  string `json:"stop,omitempty"`
}

type answer struct {
	Error string                `json:"error,omitempty"`
	Units map[string]UnitStatus `json:"units"`
}

func serve(listener net.Listener, s *supervisor) error {
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go handle(connection, s)
	}
}

func handle(connection net.Conn, s *supervisor) {
	defer connection.Close()
	var asked request
	err := json.NewDecoder(connection).Decode(&asked)
	switch {
	case err != nil:
	case asked.Start != nil:
		err = s.start(*asked.Start)
	case asked.Stop != "":
		err = s.stop(asked.Stop)
	}
	reply := answer{Units: s.status()}
	if err != nil {
		reply.Error = err.Error()
	}
	_ = json.NewEncoder(connection).Encode(reply) // who asked may have left
}

func (m Machine) ask(asked request) (map[string]UnitStatus, error) {
	connection, err := net.DialTimeout("unix", filepath.Join(m.Dir, controlSocket), time.Second)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(3 * stopPatience)); err != nil {
		return nil, err
	}
	if err := json.NewEncoder(connection).Encode(asked); err != nil {
		return nil, err
	}
	var reply answer
	if err := json.NewDecoder(connection).Decode(&reply); err != nil {
		return nil, err
	}
	if reply.Error != "" {
		return nil, errors.New(reply.Error)
	}
	return reply.Units, nil
}

// StartUnit starts a program that the machine then keeps running. One that runs so already is left alone.
func (m Machine) StartUnit(unit Unit) error {
	if _, err := m.ask(request{Start: &unit}); err != nil {
		return fmt.Errorf("start %s on %s: %w", unit.Name, m.Name, err)
	}
	return nil
}

// StopUnit ends a program for good.
func (m Machine) StopUnit(name string) error {
	if _, err := m.ask(request{Stop: name}); err != nil {
		return fmt.Errorf("stop %s on %s: %w", name, m.Name, err)
	}
	return nil
}

// Units says what the machine runs.
func (m Machine) Units() (map[string]UnitStatus, error) {
	units, err := m.ask(request{})
	if err != nil {
		return nil, fmt.Errorf("ask machine %s what it runs: %w", m.Name, err)
	}
	return units, nil
}
