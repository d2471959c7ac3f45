// Package kit is what the tests of both control planes share: the project's files, its manifests with settings of one's own, the
// scripted load balancer, load, and what an Envoy says of itself.
package kit

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Root is the project's folder.
func Root(t testing.TB) string {
	t.Helper()
	directory, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for directory != "/" {
		if _, err := os.Stat(filepath.Join(directory, "deploy")); err == nil {
			return directory
		}
		directory = filepath.Dir(directory)
	}
	t.Fatal("not in the project's folder")
	return ""
}

// Program is the path that an environment variable names, or else this one in the project's folder.
func Program(t testing.TB, variable, path string) string {
	t.Helper()
	program := os.Getenv(variable)
	if program == "" {
		program = filepath.Join(Root(t), path)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%s: %v (make test-mesh builds it)", variable, err)
	}
	return program
}

// Envoy is the binary itself, not the script of the Python package around it.
func Envoy(t testing.TB) string {
	t.Helper()
	program := Program(t, "ENVOY", ".venv/bin/envoy")
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(text, []byte("#!")) {
		return program
	}
	found, err := filepath.Glob(filepath.Join(filepath.Dir(program), "../lib/python*/site-packages/envoy/_bin/envoy"))
	if err != nil || len(found) == 0 {
		t.Fatalf("%s is a script, and there is no binary beside it, %v", program, err)
	}
	return found[0]
}

// Render is what `kubectl kustomize` makes of a directory of deploy/ whose settings say something else: pairs of a text and what
// takes its place. Each must be there.
func Render(t testing.TB, directory string, settings ...string) string {
	t.Helper()
	copied := t.TempDir()
	files, err := filepath.Glob(filepath.Join(Root(t), "deploy", directory, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: no files, %v", directory, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(file) == "settings.yaml" {
			text = []byte(Replaced(t, string(text), settings...))
		}
		if err := os.WriteFile(filepath.Join(copied, filepath.Base(file)), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.Command(Program(t, "KUBECTL", ".venv/bin/kubectl"), "kustomize", copied)
	var wrong bytes.Buffer
	command.Stderr = &wrong
	rendered, err := command.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", directory, err, wrong.String())
	}
	return string(rendered)
}

// Replaced is the text with each second of the pairs in the place of the first, which must be there.
func Replaced(t testing.TB, text string, pairs ...string) string {
	t.Helper()
	for i := 0; i+1 < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			t.Fatalf("there is no %q to replace in\n%s", pairs[i], text)
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

// Documents are those of a YAML stream.
func Documents(stream string) []string {
	var documents []string
	for _, document := range strings.Split("\n"+stream, "\n---\n") {
		if strings.TrimSpace(document) != "" {
			documents = append(documents, strings.TrimSpace(document)+"\n")
		}
	}
	return documents
}

// OfKind are the documents of these kinds.
func OfKind(stream string, kinds ...string) string {
	return strings.Join(ofKind(stream, true, kinds), "---\n")
}

// NotOfKind are the others.
func NotOfKind(stream string, kinds ...string) string {
	return strings.Join(ofKind(stream, false, kinds), "---\n")
}

func ofKind(stream string, wanted bool, kinds []string) []string {
	var found []string
	for _, document := range Documents(stream) {
		is := false
		for _, kind := range kinds {
			is = is || strings.Contains("\n"+document, "\nkind: "+kind+"\n")
		}
		if is == wanted {
			found = append(found, document)
		}
	}
	return found
}

// Patience is how long is waited for a control plane or an Envoy before the test fails: only that it ends. On a busy machine
// Envoy Gateway takes a minute to compile what it validates resources by.
const Patience = 3 * time.Minute

// Eventually fails the test if the condition, which says what is missing, does not hold within the time.
func Eventually(t testing.TB, within time.Duration, condition func() string) {
	t.Helper()
	end := time.Now().Add(within)
	for {
		missing := condition()
		if missing == "" {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after %s: %s", within, missing)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
