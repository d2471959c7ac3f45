//! From the pool options of client libraries to idleguard's, for those who know one and not the other.

use clap::ValueEnum;

/// A library whose options can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Library {
    /// Reactor Netty: Spring WebClient, Spring Cloud Gateway
    ReactorNetty,
    /// Apache HttpClient 5
    ApacheHttpclient,
    /// The JDK's java.net.http.HttpClient
    Jdk,
    /// OkHttp
    Okhttp,
    /// Go's net/http
    Go,
    /// Node.js: http.Agent, and undici (fetch)
    Node,
    /// Python: requests, httpx, aiohttp
    Python,
    /// Rust: reqwest
    Reqwest,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// As the library calls it, with its default.
    pub option: &'static str,
    /// Where the same is said to idleguard or Envoy.
    pub here: &'static str,
    /// What is different.
    pub remark: &'static str,
}

/// What is known of a library.
#[derive(Clone, Copy, Debug)]
pub struct Explanation {
    /// Its name, and where its documentation is.
    pub title: &'static str,
    /// Where its documentation is.
    pub source: &'static str,
    /// The errors that stale connections give there: parts of their texts, as docs/clients.md has them. None: it sends again by itself.
    pub errors: &'static [&'static str],
    /// Its options.
    pub rows: &'static [Row],
    /// What to set in the application, whose own pool now leads to Envoy.
    pub then: &'static str,
}

const fn row(option: &'static str, here: &'static str, remark: &'static str) -> Row {
    Row { option, here, remark }
}

const REACTOR_NETTY: &[Row] = &[
    row(
        "maxIdleTime (none)",
        "lb_idle_timeout, margin",
        "the far end's timeout, or \"learn\"; the limit is the timeout less the margin",
    ),
    row("maxLifeTime (none)", "cluster: max_connection_duration", "Envoy, on the cluster: ends between exchanges"),
    row("evictInBackground (off)", "lanes", "always: each lane's pool closes what has been idle for its idle_timeout"),
    row("lifo, fifo (fifo)", "-", "Envoy's pool is last in, first out"),
    row(
        "maxConnections (500 for HttpClient)",
        "circuit_breakers: max_connections",
        "Envoy, on the cluster; 1024 by default, for each worker's pool together",
    ),
    row(
        "pendingAcquireMaxCount (1000 for HttpClient)",
        "circuit_breakers: max_pending_requests",
        "Envoy, on the cluster; 1024 by default",
    ),
    row(
        "pendingAcquireTimeout (45 s)",
        "route: timeout",
        "Envoy has no timeout of its own for waiting; the route's covers it",
    ),
    row(
        "HttpClient.disableRetry (it retries once)",
        "route: retry_policy",
        "Envoy; `inject --retries` writes one for idempotent methods; Reactor Netty repeats what it has not begun to send",
    ),
];

const APACHE: &[Row] = &[
    row(
        "HttpClientBuilder.evictIdleConnections (off)",
        "lb_idle_timeout, margin",
        "the far end's timeout, or \"learn\"",
    ),
    row(
        "ConnectionConfig.setTimeToLive",
        "cluster: max_connection_duration",
        "Envoy, on the cluster: ends between exchanges",
    ),
    row(
        "ConnectionConfig.setValidateAfterInactivity",
        "-",
        "not needed: a look at the socket can't see a far end that forgets silently",
    ),
    row(
        "ConnectionKeepAliveStrategy (Keep-Alive: timeout)",
        "lb_idle_timeout",
        "the scout heeds it: less the margin, and at least 1 s less",
    ),
    row("setMaxConnTotal, setMaxConnPerRoute (25, 5)", "circuit_breakers: max_connections", "Envoy, on the cluster"),
    row(
        "RequestConfig.setConnectionRequestTimeout (3 min)",
        "route: timeout",
        "Envoy has no timeout of its own for waiting",
    ),
    row(
        "DefaultHttpRequestRetryStrategy (once)",
        "route: retry_policy",
        "Envoy; `inject --retries`: idempotent methods only, in both",
    ),
];

const GO: &[Row] = &[
    row(
        "Transport.IdleConnTimeout (90 s in DefaultTransport)",
        "lb_idle_timeout, margin",
        "the far end's timeout, or \"learn\"",
    ),
    row("Transport.MaxIdleConns, MaxIdleConnsPerHost (100, 2)", "-", "Envoy keeps all, until the limit"),
    row("Transport.MaxConnsPerHost (no limit)", "circuit_breakers: max_connections", "Envoy, on the cluster"),
    row(
        "Transport.DisableKeepAlives (false)",
        "max_requests_per_connection: 1",
        "Envoy, on the cluster: no reuse at all",
    ),
    row("- (no lifetime)", "cluster: max_connection_duration", "Go has none"),
    row(
        "- (retries what is idempotent by itself)",
        "route: retry_policy",
        "Envoy; `inject --retries`: once, after a reset, idempotent methods only",
    ),
];

const NODE: &[Row] = &[
    row("http.Agent timeout (5 s in globalAgent)", "lb_idle_timeout, margin", "the far end's timeout, or \"learn\""),
    row(
        "http.Agent agentKeepAliveTimeoutBuffer (1000 ms)",
        "margin",
        "10 %, and at least 1 s where Keep-Alive says the timeout",
    ),
    row("http.Agent maxSockets (no limit)", "circuit_breakers: max_connections", "Envoy, on the cluster"),
    row("http.Agent maxFreeSockets (256)", "-", "Envoy keeps all, until the limit"),
    row("http.Agent scheduling (lifo)", "-", "Envoy's pool is last in, first out"),
    row("undici keepAliveTimeout (4 s)", "lb_idle_timeout, margin", "the far end's timeout, or \"learn\""),
    row("undici keepAliveTimeoutThreshold (2 s)", "margin", "taken off the far end's Keep-Alive hint"),
    row("undici keepAliveMaxTimeout (10 min)", "-", "a hint only lowers the limit here"),
    row("undici connections (no limit)", "circuit_breakers: max_connections", "Envoy, on the cluster"),
];

const JDK: &[Row] = &[
    row(
        "jdk.httpclient.keepalive.timeout (30 s)",
        "lb_idle_timeout, margin",
        "the far end's timeout, or \"learn\"; there it is a system property, for the whole JVM",
    ),
    row("jdk.httpclient.connectionPoolSize (no limit)", "circuit_breakers: max_connections", "Envoy, on the cluster"),
    row("- (no lifetime)", "cluster: max_connection_duration", "the JDK has none"),
    row(
        "jdk.httpclient.enableAllMethodRetry (false)",
        "route: retry_policy",
        "Envoy; `inject --retries`: idempotent methods only, in both",
    ),
];

const OKHTTP: &[Row] = &[
    row("ConnectionPool keepAliveDuration (5 min)", "lb_idle_timeout, margin", "the far end's timeout, or \"learn\""),
    row("ConnectionPool maxIdleConnections (5)", "-", "Envoy keeps all, until the limit"),
    row(
        "Dispatcher maxRequestsPerHost (5)",
        "circuit_breakers: max_requests",
        "Envoy, on the cluster; 1024 by default",
    ),
    row("- (no lifetime)", "cluster: max_connection_duration", "OkHttp has none"),
    row(
        "retryOnConnectionFailure (true)",
        "route: retry_policy",
        "Envoy; `inject --retries`: idempotent methods only; OkHttp sends a POST again, too",
    ),
];

const PYTHON: &[Row] = &[
    row("requests: - (no idle timeout)", "lb_idle_timeout, margin", "the far end's timeout, or \"learn\""),
    row("httpx Limits keepalive_expiry (5 s)", "lb_idle_timeout, margin", "the far end's timeout, or \"learn\""),
    row("aiohttp keepalive_timeout (15 s)", "lb_idle_timeout, margin", "the far end's timeout, or \"learn\""),
    row(
        "requests pool_maxsize (10), httpx max_connections (100), aiohttp limit (100)",
        "circuit_breakers: max_connections",
        "Envoy, on the cluster",
    ),
    row(
        "requests HTTPAdapter max_retries (0)",
        "route: retry_policy",
        "Envoy; `inject --retries`: once, after a reset, idempotent methods only",
    ),
];

const REQWEST: &[Row] = &[
    row("pool_idle_timeout (90 s)", "lb_idle_timeout, margin", "the far end's timeout, or \"learn\""),
    row("pool_max_idle_per_host (no limit)", "-", "Envoy keeps all, until the limit"),
    row("- (no lifetime)", "cluster: max_connection_duration", "reqwest has none"),
    row(
        "- (sends again what it has not begun to send)",
        "route: retry_policy",
        "Envoy; `inject --retries`: once, after a reset, idempotent methods only",
    ),
];

impl Library {
    /// The libraries that say something like this when a connection is stale, in any case of letters.
    pub fn that_say(text: &str) -> Vec<Self> {
        let text = text.to_lowercase();
        let says =
            |library: &&Self| library.explanation().errors.iter().any(|part| text.contains(&part.to_lowercase()));
        Self::value_variants().iter().filter(says).copied().collect()
    }

    /// What is known of it.
    pub fn explanation(self) -> Explanation {
        match self {
            Self::ReactorNetty => Explanation {
                title: "Reactor Netty, ConnectionProvider",
                source: "https://projectreactor.io/docs/netty/release/reference/http-client.html",
                errors: &[
                    "Connection prematurely closed BEFORE response",
                    "Connection has been closed BEFORE response, while sending request body",
                    "recvAddress(..) failed with error(-104): Connection reset by peer",
                ],
                rows: REACTOR_NETTY,
                then: "maxIdleTime below the idle_timeout of Envoy's connection manager (1 h by default): any value will do, for all \
                       far ends. The far ends' own timeouts no longer concern the application.",
            },
            Self::ApacheHttpclient => Explanation {
                title: "Apache HttpClient 5",
                source: "https://hc.apache.org/httpcomponents-client-5.6.x/connection-management.html",
                errors: &["failed to respond", "SocketException: Connection reset"],
                rows: APACHE,
                then: "nothing: where Envoy adds a keep-alive header to responses, the default ConnectionKeepAliveStrategy obeys it. \
                       Else its default of 3 min is below Envoy's 1 h.",
            },
            Self::Jdk => Explanation {
                title: "JDK, java.net.http.HttpClient",
                source: "https://docs.oracle.com/en/java/javase/17/docs/api/java.net.http/module-summary.html",
                errors: &["HTTP/1.1 header parser received no bytes", "Connection reset"],
                rows: JDK,
                then: "nothing: jdk.httpclient.keepalive.timeout (30 s) is below the idle_timeout of Envoy's connection manager (1 h by \
                       default).",
            },
            Self::Okhttp => Explanation {
                title: "OkHttp, ConnectionPool",
                source: "https://square.github.io/okhttp/5.x/okhttp/okhttp3/-connection-pool/",
                errors: &[],
                rows: OKHTTP,
                then: "retryOnConnectionFailure(false), where a request must not be executed twice: towards Envoy nothing needs it.",
            },
            Self::Go => Explanation {
                title: "Go, net/http Transport",
                source: "https://pkg.go.dev/net/http#Transport",
                errors: &["EOF", "read: connection reset by peer", "http: server closed idle connection"],
                rows: GO,
                then: "nothing: IdleConnTimeout (90 s) is below the idle_timeout of Envoy's connection manager (1 h by default). Raise \
                       MaxIdleConnsPerHost: 2 are few towards one Envoy.",
            },
            Self::Node => Explanation {
                title: "Node.js, http.Agent and undici",
                source: "https://nodejs.org/api/http.html#new-agentoptions, https://undici.nodejs.org/#/docs/api/Client",
                errors: &["socket hang up", "ECONNRESET", "other side closed"],
                rows: NODE,
                then: "where Envoy adds a keep-alive header to responses, http.Agent and undici keep connections to it for as long \
                       as it says.",
            },
            Self::Python => Explanation {
                title: "Python: requests, httpx, aiohttp",
                source: "https://requests.readthedocs.io, https://www.python-httpx.org/advanced/resource-limits/, https://docs.aiohttp.org",
                errors: &[
                    "Remote end closed connection without response",
                    "Server disconnected",
                    "Connection reset by peer",
                    "httpx.ReadError",
                ],
                rows: PYTHON,
                then: "nothing: Envoy's connection manager keeps connections for 1 h by default.",
            },
            Self::Reqwest => Explanation {
                title: "Rust, reqwest",
                source: "https://docs.rs/reqwest/latest/reqwest/struct.ClientBuilder.html",
                errors: &["connection closed before message completed", "Connection reset by peer (os error 104)"],
                rows: REQWEST,
                then: "nothing: pool_idle_timeout (90 s) is below the idle_timeout of Envoy's connection manager (1 h by default).",
            },
        }
    }
}

impl Explanation {
    /// The table as text, at most as wide as its words.
    pub fn table(&self) -> String {
        let head = row("there (default)", "here", "what is different");
        let lines: Vec<Row> = std::iter::once(head).chain(self.rows.iter().copied()).collect();
        let width =
            |text: fn(&Row) -> &'static str| lines.iter().map(|row| text(row).chars().count()).max().unwrap_or(0);
        let (option, here) = (width(|row| row.option), width(|row| row.here));
        let rows = lines.iter().map(|row| format!("{:option$}  {:here$}  {}\n", row.option, row.here, row.remark));
        rows.collect()
    }
}
