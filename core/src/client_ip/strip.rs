//! The default of `strip`: headers that applications, frameworks and gateways are known to read a client's address from.
//!
//! No such list can be complete: any application may read a header of its own (docs/client-ip.md says how to find out). What
//! is in `sources` or `set` is removed and written anyway; the spellings of a name are one kind
//! ([`Names`](super::names::Names)), so each is here once.

/// By who writes or reads them, in lower case.
pub const STRIPPED: &[&str] = &[
    // RFC 7239, and what proxies wrote before and beside it: nginx, Apache, HAProxy, Squid, Traefik, Caddy, Heroku.
    "forwarded",
    "x-forwarded-for",
    "x-real-ip",
    "x-forwarded",
    "forwarded-for",
    "x-forward-for",
    "x-forwarder-for",
    "x-forwarded-for-original",
    "x-original-forwarded-for", // ingress-nginx
    "x-forwarded-client-ip",
    "x-forwarded-ip",
    "z-forwarded-for", // Zscaler
    // Envoy itself, for a peer that is the load balancer; Istio, oauth2-proxy, Pomerium and Railway read it.
    "x-envoy-external-address",
    // What PHP's, Java's and Python's usual snippets read, Rails, CodeIgniter, WordPress plugins; Node's request-ip, python-ipware.
    "client-ip",
    "x-client-ip",
    "cluster-client-ip",
    "x-cluster-client-ip", // Rackspace, Riverbed
    "remote-addr",
    "x-remote-addr",
    "x-original-remote-addr",
    "remote-ip",
    "x-remote-ip",
    "real-ip",
    "source-ip",
    "x-source-ip",
    "x-true-ip",
    "x-true-client-ip",
    "x-real-client-ip",
    "x-user-ip",
    "x-ip",
    "clientip",
    "x-clientip",
    "x-originating-ip", // mail gateways, Zimbra, Exchange
    "x-proxyuser-ip",   // Google's services
    "x-custom-ip-authorization",
    // The same snippets, where they look for a CGI variable's name among the headers themselves.
    "http-client-ip",
    "http-forwarded",
    "http-forwarded-for",
    "http-x-forwarded",
    "http-x-forwarded-for",
    "http-x-cluster-client-ip",
    "http-x-real-ip",
    // Servers in front of Java: WebLogic's and WebSphere's plug-ins.
    "proxy-client-ip",
    "wl-proxy-client-ip",
    "$wsra",
    // Load balancers: Citrix NetScaler.
    "ns-client-ip",
    "cip",
    // Clouds: Azure Front Door, App Engine, AWS CloudFront, DigitalOcean, Fly.io, Netlify, Vercel.
    "x-azure-clientip",
    "x-azure-socketip",
    "x-appengine-user-ip",
    "x-appengine-remote-addr",
    "cloudfront-viewer-address",
    "do-connecting-ip",
    "fly-client-ip",
    "x-nf-client-connection-ip",
    "x-bb-ip",
    "x-vercel-forwarded-for",
    "x-vercel-proxied-for",
    // CDNs: Akamai, Cloudflare, Fastly, Imperva, Sucuri, Alibaba, Tencent EdgeOne, ArvanCloud, ChinaNetCenter.
    "true-client-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "fastly-client-ip",
    "incap-client-ip",
    "x-sucuri-clientip",
    "x-sucuri-client-ip",
    "ali-cdn-real-ip",
    "ali-real-client-ip",
    "eo-connecting-ip",
    "eo-client-ip",
    "ar-real-ip",
    "cdn-src-ip",
    "cdn-real-ip",
];
