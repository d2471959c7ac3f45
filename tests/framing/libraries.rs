//! HTTP/2 message sequences (RFC 9113).
