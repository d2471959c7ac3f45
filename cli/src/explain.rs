//! From the pool options of client libraries to idleguard's, for those who know one and not the other.

use clap::ValueEnum;

/// A library whose options can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Library {
    /// Reactor Netty: Spring WebClient, Spring Cloud Gateway
    ReactorNetty,
    /// Apache HttpClient 5
    ApacheHttpclient,
    /// Go's net/http
    Go,
    /// Node.js: http.Agent, and undici (fetch)
    Node,
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
    /// The error that a stale connection gives there.
    pub error: &'static str,
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

impl Library {
    /// What is known of it.
    pub fn explanation(self) -> Explanation {
        match self {
            Self::ReactorNetty => Explanation {
                title: "Reactor Netty, ConnectionProvider",
                source: "https://projectreactor.io/docs/netty/release/reference/http-client.html",
                error: "Connection prematurely closed BEFORE response",
                rows: REACTOR_NETTY,
                then: "maxIdleTime below the idle_timeout of Envoy's connection manager (1 h by default): any value will do, for all \
                       far ends. The far ends' own timeouts no longer concern the application.",
            },
            Self::ApacheHttpclient => Explanation {
                title: "Apache HttpClient 5",
                source: "https://hc.apache.org/httpcomponents-client-5.6.x/connection-management.html",
                error: "NoHttpResponseException: ... failed to respond",
                rows: APACHE,
                then: "nothing: where Envoy adds a keep-alive header to responses, the default ConnectionKeepAliveStrategy obeys it. \
                       Else its default of 3 min is below Envoy's 1 h.",
            },
            Self::Go => Explanation {
                title: "Go, net/http Transport",
                source: "https://pkg.go.dev/net/http#Transport",
                error: "read: connection reset by peer; EOF; http: server closed idle connection",
                rows: GO,
                then: "nothing: IdleConnTimeout (90 s) is below the idle_timeout of Envoy's connection manager (1 h by default). Raise \
                       MaxIdleConnsPerHost: 2 are few towards one Envoy.",
            },
            Self::Node => Explanation {
                title: "Node.js, http.Agent and undici",
                source: "https://nodejs.org/api/http.html#new-agentoptions, https://undici.nodejs.org/#/docs/api/Client",
                error: "socket hang up; ECONNRESET; UND_ERR_SOCKET other side closed",
                rows: NODE,
                then: "where Envoy adds a keep-alive header to responses, http.Agent and undici keep connections to it for as long \
                       as it says.",
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
