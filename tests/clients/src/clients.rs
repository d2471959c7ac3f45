//! Who is tried.

/// A client, and what one who has no idleguard would set.
#[derive(Debug)]
pub(crate) struct Client {
    /// As people call it.
    pub(crate) title: &'static str,
    /// Its folder, where `build` and `run` are.
    pub(crate) folder: &'static str,
    /// What `run` calls it.
    pub(crate) name: &'static str,
    /// Its own setting, for a load balancer with an idle timeout of 60 s, as Markdown.
    pub(crate) setting: &'static str,
}

/// All of them, in the order of the table.
pub(crate) const CLIENTS: &[Client] = &[
    Client {
        title: "Reactor Netty",
        folder: "java",
        name: "reactor-netty",
        setting: "`ConnectionProvider.builder(\"lb\").maxIdleTime(Duration.ofSeconds(50))`, given to `HttpClient.create(provider)`; by default a connection may be \
                  idle for ever. It repeats a request once where nothing of it has been sent.",
    },
    Client {
        title: "Apache HttpClient 5",
        folder: "java",
        name: "apache-httpclient",
        setting: "`HttpClients.custom().evictIdleConnections(TimeValue.ofSeconds(50))`, and `ConnectionConfig.setValidateAfterInactivity`, which looks at a \
                  connection that has been idle for 2 s by default: it sees a FIN that has come, and never silence. It repeats idempotent requests once.",
    },
    Client {
        title: "JDK HttpClient",
        folder: "java",
        name: "jdk",
        setting: "the system property `jdk.httpclient.keepalive.timeout=50` (seconds; 30 by default), for the whole JVM.",
    },
    Client {
        title: "OkHttp",
        folder: "java",
        name: "okhttp",
        setting: "`new OkHttpClient.Builder().connectionPool(new ConnectionPool(5, 50, TimeUnit.SECONDS))` (5 min by default). \
                  `retryOnConnectionFailure`, on by default, sends requests again, `POST`s too.",
    },
    Client {
        title: "Go net/http",
        folder: "go",
        name: "net/http",
        setting: "`http.Transport{IdleConnTimeout: 50 * time.Second}` (90 s in `DefaultTransport`). It sends idempotent requests again, and others of which \
                  nothing has been written.",
    },
    Client {
        title: "Node http",
        folder: "node",
        name: "http",
        setting: "`new http.Agent({ keepAlive: true, timeout: 50_000 })` (5 s in `http.globalAgent`, where a `Keep-Alive` header may say less).",
    },
    Client {
        title: "Node undici",
        folder: "node",
        name: "undici",
        setting: "`new Agent({ keepAliveTimeout: 50_000 })` (4 s; a `Keep-Alive` header counts more, less 2 s). `fetch` is undici.",
    },
    Client {
        title: "Python requests",
        folder: "python",
        name: "requests",
        setting: "none: its pool (urllib3's) keeps a connection for as long as the far end does. `HTTPAdapter(max_retries=Retry(…))` sends again \
                  what you allow it to.",
    },
    Client {
        title: "Python httpx",
        folder: "python",
        name: "httpx",
        setting: "`httpx.Client(limits=httpx.Limits(keepalive_expiry=50))` (5 s by default).",
    },
    Client {
        title: "Python aiohttp",
        folder: "python",
        name: "aiohttp",
        setting: "`aiohttp.TCPConnector(keepalive_timeout=50)` (15 s by default). It sends idempotent requests again, once.",
    },
    Client {
        title: "Rust reqwest",
        folder: "rust",
        name: "reqwest",
        setting: "`Client::builder().pool_idle_timeout(Duration::from_secs(50))` (90 s by default). It sends again what it has not begun to send.",
    },
];
