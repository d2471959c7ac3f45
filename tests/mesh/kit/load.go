package kit

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// Load is clients that each send one request after the other on a connection of their own.
type Load struct {
	// Address of the proxy.
	Address string
	// Host is what clients ask for.
	Host string
	// Clients at once.
	Clients int
	// Pause is the longest between an answer and the next request; each is drawn anew. Bursts has all clients wait for one another,
	// so that there are as many connections as clients, and every second time for a bit more than half of it.
	Pause  time.Duration
	Bursts bool
	// Check, if any, says what is wrong with an answer. It may be called by several clients at once.
	Check func(*http.Response, []byte) string
	// Denied, if any, is the only failure that may be, and must be, under a change.
	Denied string
	// Tolerated, if any, says of a failure and of when its request was sent whether it may be. One request in a hundred at most.
	Tolerated func(failure string, sent time.Time) bool
	// Watched are failures that are told, and held against nobody: those of a mesh without idleguard.
	Watched bool
	// Path is "/" if it is empty.
	Path string
	// Headers of every request.
	Headers map[string]string
}

// Report is how a load went.
type Report struct {
	OK int
	// When requests were sent, by what was wrong with the answer.
	Failures map[string][]time.Time
}

// Failed is how many requests got no answer, or another one than 200.
func (r *Report) Failed() int {
	failed := 0
	for _, sent := range r.Failures {
		failed += len(sent)
	}
	return failed
}

func (r *Report) String() string {
	texts := make([]string, 0, len(r.Failures))
	for text, sent := range r.Failures {
		texts = append(texts, fmt.Sprintf("%d × %s, within %d ms", len(sent), text, slices.MaxFunc(sent, time.Time.Compare).Sub(slices.MinFunc(sent, time.Time.Compare)).Milliseconds()))
	}
	sort.Strings(texts)
	return fmt.Sprintf("%d of %d failed %s", r.Failed(), r.OK+r.Failed(), strings.Join(texts, "; "))
}

func (r *Report) add(failure string, sent time.Time) {
	if failure == "" {
		r.OK++
		return
	}
	if r.Failures == nil {
		r.Failures = map[string][]time.Time{}
	}
	r.Failures[failure] = append(r.Failures[failure], sent)
}

// Run sends POST requests, which nothing on the way may repeat, for this time.
func (l Load) Run(duration time.Duration) *Report {
	stop := make(chan struct{})
	time.AfterFunc(duration, func() { close(stop) })
	return l.Until(stop)
}

// Until sends them until it is told to stop.
func (l Load) Until(stop <-chan struct{}) *Report {
	var mutex sync.Mutex
	var clients sync.WaitGroup
	report := &Report{}
	meet := newMeeting(l, stop)
	for range l.Clients {
		clients.Go(func() {
			client := &client{load: l}
			defer client.close()
			for meet.pause() {
				sent := time.Now()
				failure := client.post()
				mutex.Lock()
				report.add(failure, sent)
				mutex.Unlock()
			}
		})
	}
	clients.Wait()
	return report
}

// client is one connection, opened again when it has ended.
type client struct {
	load       Load
	connection net.Conn
	reader     *bufio.Reader
}

func (c *client) close() {
	if c.connection != nil {
		_ = c.connection.Close()
		c.connection = nil
	}
}

// post is what is wrong with the answer, if anything.
func (c *client) post() string {
	if c.connection == nil {
		connection, err := net.DialTimeout("tcp", c.load.Address, 5*time.Second)
		if err != nil {
			return "connect: " + kind(err)
		}
		c.connection, c.reader = connection, bufio.NewReader(connection)
	}
	_ = c.connection.SetDeadline(time.Now().Add(10 * time.Second))
	var head strings.Builder
	path := c.load.Path
	if path == "" {
		path = "/"
	}
	fmt.Fprintf(&head, "POST %s HTTP/1.1\r\nhost: %s\r\ncontent-length: 5\r\n", path, c.load.Host)
	for name, value := range c.load.Headers {
		fmt.Fprintf(&head, "%s: %s\r\n", name, value)
	}
	head.WriteString("\r\nhello")
	if _, err := io.WriteString(c.connection, head.String()); err != nil {
		c.close()
		return "send: " + kind(err)
	}
	response, err := http.ReadResponse(c.reader, &http.Request{Method: http.MethodPost})
	if err != nil {
		c.close()
		return "no answer: " + kind(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		c.close()
		return "half an answer: " + kind(err)
	}
	if response.Close {
		c.close()
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Sprintf("%d %.120s", response.StatusCode, strings.TrimSpace(string(body)))
	}
	if c.load.Check != nil {
		return c.load.Check(response, body)
	}
	return ""
}

// kind is an error's text without addresses, so that equal ones are counted together.
func kind(err error) string {
	text := err.Error()
	return text[strings.LastIndex(text, ": ")+1:]
}

// meeting has clients pause: each for itself, or all of them together.
type meeting struct {
	load Load
	stop <-chan struct{}
	next chan struct{}
	lock sync.Mutex
}

func newMeeting(load Load, stop <-chan struct{}) *meeting {
	m := &meeting{load: load, stop: stop, next: make(chan struct{})}
	if load.Bursts {
		go func() {
			for long := false; ; long = !long {
				pause := rand.N(load.Pause/2 + 1)
				if long {
					pause = load.Pause/2 + rand.N(load.Pause/10)
				}
				select {
				case <-stop:
					return
				case <-time.After(pause):
				}
				m.lock.Lock()
				close(m.next)
				m.next = make(chan struct{})
				m.lock.Unlock()
			}
		}()
	}
	return m
}

// pause is over when it is time for the next request, or false at the end.
func (m *meeting) pause() bool {
	var pause <-chan time.Time
	var next chan struct{}
	if m.load.Bursts {
		m.lock.Lock()
		next = m.next
		m.lock.Unlock()
	} else {
		pause = time.After(rand.N(m.load.Pause + 1))
	}
	select {
	case <-m.stop:
		return false
	case <-pause:
	case <-next:
	}
	return true
}

// Received are the headers that the application behind gets of a GET with these, each a name and a value, in order.
func Received(t testing.TB, address, host string, sent ...[2]string) [][2]string {
	t.Helper()
	headers, err := received(address, host, "", sent)
	if err != nil {
		t.Fatal(err)
	}
	return headers
}

// WaitForAnswer waits until a GET is answered by 200.
func WaitForAnswer(t testing.TB, address, host string) {
	t.Helper()
	Eventually(t, Patience, func() string {
		if _, err := received(address, host, "", nil); err != nil {
			return err.Error()
		}
		return ""
	})
}

// received is the same from this address, if there is one. A value's characters are bytes.
func received(address, host, from string, sent [][2]string) ([][2]string, error) {
	return receivedOf(address, "", host, from, sent)
}

// receivedOf sends something else first.
func receivedOf(address, first, host, from string, sent [][2]string) ([][2]string, error) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	connection, err := dialer.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	_ = connection.SetDeadline(time.Now().Add(10 * time.Second))
	var head strings.Builder
	head.WriteString(first)
	fmt.Fprintf(&head, "GET /headers HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n", host)
	for _, header := range sent {
		fmt.Fprintf(&head, "%s: %s\r\n", header[0], bytesOf(header[1]))
	}
	if _, err := io.WriteString(connection, head.String()+"\r\n"); err != nil {
		return nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(connection), nil)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%d %s", response.StatusCode, body)
	}
	var headers [][2]string
	return headers, json.Unmarshal(body, &headers)
}

// bytesOf is the text with each character as the byte of the same number.
func bytesOf(text string) string {
	bytes := make([]byte, 0, len(text))
	for _, character := range text {
		bytes = append(bytes, byte(character))
	}
	return string(bytes)
}

// Values are those of the headers of this name.
func Values(headers [][2]string, name string) []string {
	var values []string
	for _, header := range headers {
		if strings.EqualFold(header[0], name) {
			values = append(values, header[1])
		}
	}
	return values
}

// Under is how this load goes while something else is done, and for a second before and after. Each failure fails the test, but what is denied as it should be.
func (l Load) Under(t *testing.T, name string, change func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		stop := make(chan struct{})
		done := make(chan *Report)
		go func() { done <- l.Until(stop) }()
		began := time.Now()
		time.Sleep(time.Second)
		func() {
			// Also if the change ends the test.
			defer func() {
				time.Sleep(time.Second)
				close(stop)
				report := <-done
				t.Logf("%s, %.0f a second", report, float64(report.OK+report.Failed())/time.Since(began).Seconds())
				denied := len(report.Failures[l.Denied])
				tolerated := 0
				for failure, requests := range report.Failures {
					for _, sent := range requests {
						if failure != l.Denied && l.Tolerated != nil && l.Tolerated(failure, sent) {
							tolerated++
						}
					}
				}
				if !l.Watched && (report.Failed() != denied+tolerated || tolerated > (report.OK+report.Failed())/100 || report.OK < 50 || (l.Denied != "") != (denied > 0)) {
					t.Errorf("%s, of which %d may be", report, denied+tolerated)
				}
			}()
			change(t)
		}()
	})
}

// Forged is 200 requests a second that claim an address, and an answer which says that the application got it
// is a failure.
func Forged(address, host string) Load {
	return Load{
		Address: address, Host: host, Clients: 40, Pause: 400 * time.Millisecond, Path: "/headers",
		Headers: map[string]string{"x-forwarded-for": "6.6.6.6", "x-real-ip": "6.6.6.6", "true-client-ip": "6.6.6.6", "x-idleguard-lane": "none"},
		Check: func(_ *http.Response, body []byte) string {
			if strings.Contains(string(body), "6.6.6.6") {
				return "the client chose its address"
			}
			return ""
		},
	}
}

// Plain is the same without a claim.
func Plain(address, host string) Load {
	l := Forged(address, host)
	l.Headers, l.Check = nil, nil
	return l
}
