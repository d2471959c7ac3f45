// Sends what it is told to on its standard input, with one client, as that client is by default.
package main

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
)

func main() {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var method, url string
		var count int
		if _, err := fmt.Sscan(lines.Text(), &method, &url, &count); err != nil {
			panic(err)
		}
		results := make([]string, count)
		var wave sync.WaitGroup
		for i := range results {
			wave.Add(1)
			go func() {
				defer wave.Done()
				results[i] = send(method, url)
			}()
		}
		wave.Wait()
		fmt.Println(strings.Join(results, "\n"))
	}
}

func send(method, url string) string {
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader("hello")
	}
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return err.Error()
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	if response.StatusCode != http.StatusOK {
		return response.Status + " " + strings.TrimSpace(string(text))
	}
	return "ok"
}
