package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// With a section [azure] the server passes requests on, here to another
// server, and shows where they stand; without it there is no layer outside.
func TestServePassesOn(t *testing.T) {
	azure := start(t, t.TempDir())
	dir := t.TempDir()
	settings := filepath.Join(dir, "settings.toml")
	text := fmt.Sprintf("[azure]\nsubscriptions = [%q]\nendpoint = %q\nca_file = %q\ntoken_file = %q\n",
		strings.Split(vm1, "/")[2], azure.url, filepath.Join(azure.dir, "tls/ca.pem"), filepath.Join(azure.dir, adminTokenFile))
	if err := os.WriteFile(settings, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ours := start(t, filepath.Join(dir, "data"), "--config", settings)
	for _, r := range []*running{azure, ours} {
		if status, body := r.ask(t, r.client(t), "PUT", policy1+version1, r.token(t, adminTokenFile), policyBody); status != 200 {
			t.Fatalf("PUT: %d %v", status, body)
		}
	}
	const wish = `{"virtualMachines":[{"id":"` + vm1 + `","ports":[{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"192.0.2.7"}]}],"justification":"both layers"}`
	c, token := ours.client(t), ours.token(t, adminTokenFile)
	if status, body := ours.ask(t, c, "POST", policy1+"/initiate"+version1, token, wish); status != 202 {
		t.Fatalf("initiate: %d %v", status, body)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		status, body := ours.ask(t, c, "GET", "/api/v1/requests", token, "")
		if status == 200 && strings.Contains(fmt.Sprint(body), "takenUntil") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not passed on: %d %v", status, body)
		}
	}
	_, there := azure.ask(t, azure.client(t), "GET", policy1+version1, azure.token(t, adminTokenFile), "")
	if !strings.Contains(fmt.Sprint(there), ": both layers") || !strings.Contains(fmt.Sprint(there), "jitgate 0") {
		t.Errorf("at the other: %v", there)
	}
	_, alone := azure.ask(t, azure.client(t), "GET", "/api/v1/requests", azure.token(t, adminTokenFile), "")
	if strings.Contains(fmt.Sprint(alone), "outer") {
		t.Errorf("the other has no layer outside: %v", alone)
	}
}
