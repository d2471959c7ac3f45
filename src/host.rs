//! Every call to Envoy and, in `callbacks`, from it; nothing else.
//!
//! The SDK's wrappers panic on statuses that they don't expect, unwrap UTF-8, and allocate for every property's path. A panic
//! stops the filter for all traffic on its worker. So the calls that the filter needs are declared here, with
//! their statuses as values; whoever calls decides what a failure means, and traffic goes on.
//!
//! The callbacks in which a call is allowed are those of the [proxy-wasm ABI 0.2.1][abi]; elsewhere the host answers with an
//! error, which is logged once.
//!
//! [abi]: https://github.com/proxy-wasm/spec/tree/main/abi-versions/v0.2.1
#![expect(unsafe_code, reason = "imports of the host, and the memory that it hands over; each use says why it holds")]

mod callbacks;

use std::cell::RefCell;
use std::time::Duration;

use idleguard_core::header_map;
use idleguard_core::metrics::Kind;
use idleguard_core::time::Timestamp;
use proxy_wasm::types::{BufferType, LogLevel, MapType, MetricType, StreamType};

/// A call that the host did not carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostError {
    /// The import's name.
    pub(crate) call: &'static str,
    /// Its status (proxy-wasm ABI 0.2.1, `proxy_status_t`).
    pub(crate) status: u32,
}

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;

mod import {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        pub(super) fn proxy_log(level: u32, text: *const u8, size: usize) -> u32;
        pub(super) fn proxy_get_log_level(level: *mut u32) -> u32;
        pub(super) fn proxy_get_buffer_bytes(
            buffer: u32,
            start: usize,
            max_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_set_buffer_bytes(
            buffer: u32,
            start: usize,
            size: usize,
            data: *const u8,
            data_size: usize,
        ) -> u32;
        pub(super) fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub(super) fn proxy_replace_header_map_value(
            map: u32,
            name: *const u8,
            name_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub(super) fn proxy_add_header_map_value(
            map: u32,
            name: *const u8,
            name_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub(super) fn proxy_remove_header_map_value(map: u32, name: *const u8, name_size: usize) -> u32;
        pub(super) fn proxy_get_property(
            path: *const u8,
            size: usize,
            data: *mut *mut u8,
            data_size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_set_property(path: *const u8, size: usize, value: *const u8, value_size: usize) -> u32;
        pub(super) fn proxy_call_foreign_function(
            name: *const u8,
            name_size: usize,
            argument: *const u8,
            argument_size: usize,
            result: *mut *mut u8,
            result_size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_send_local_response(
            code: u32,
            details: *const u8,
            details_size: usize,
            body: *const u8,
            body_size: usize,
            headers: *const u8,
            headers_size: usize,
            grpc_status: i32,
        ) -> u32;
        pub(super) fn proxy_get_shared_data(
            key: *const u8,
            key_size: usize,
            data: *mut *mut u8,
            size: *mut usize,
            version: *mut u32,
        ) -> u32;
        pub(super) fn proxy_set_shared_data(
            key: *const u8,
            key_size: usize,
            data: *const u8,
            size: usize,
            version: u32,
        ) -> u32;
        pub(super) fn proxy_http_call(
            cluster: *const u8,
            cluster_size: usize,
            headers: *const u8,
            headers_size: usize,
            body: *const u8,
            body_size: usize,
            trailers: *const u8,
            trailers_size: usize,
            timeout: u32,
            token: *mut u32,
        ) -> u32;
        pub(super) fn proxy_set_effective_context(context: u32) -> u32;
        pub(super) fn proxy_close_stream(stream: u32) -> u32;
        pub(super) fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
        pub(super) fn proxy_define_metric(kind: u32, name: *const u8, size: usize, id: *mut u32) -> u32;
        pub(super) fn proxy_increment_metric(id: u32, offset: i64) -> u32;
        pub(super) fn proxy_record_metric(id: u32, value: u64) -> u32;
    }
}

fn checked(call: &'static str, status: u32) -> Result<(), HostError> {
    if status == OK { Ok(()) } else { Err(HostError { call, status }) }
}

/// Takes over what the host wrote: it allocated `size` bytes at `data` through `proxy_on_memory_allocate`, for us to free.
fn taken(data: *mut u8, size: usize) -> Vec<u8> {
    if data.is_null() || size == 0 {
        return Vec::new();
    }
    // SAFETY: the SDK's allocator export made a boxed slice of exactly this size and gave it away; the host filled it.
    unsafe { Vec::from_raw_parts(data, size, size) }
}

/// Runs a call that hands over bytes.
fn fetch(call: &'static str, run: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> Result<Vec<u8>, HostError> {
    let (mut data, mut size) = (std::ptr::null_mut(), 0);
    let status = run(&raw mut data, &raw mut size);
    checked(call, status)?;
    Ok(taken(data, size))
}

// === clock and chance ===

mod wasi {
    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        pub(super) fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
        pub(super) fn random_get(bytes: *mut u8, size: usize) -> u16;
    }
}

/// The time on the machine's monotonic clock, the same for all workers. (Envoy's own call gives the wall clock, which can be
/// set back; `std::time::Instant` can't be compared between VMs.)
pub(crate) fn now() -> Timestamp {
    const MONOTONIC: u32 = 1;
    let mut nanos = 0;
    // SAFETY: the out-pointer is live for the call. Envoy's clock does not fail; time would stand still at 0.
    let _ = unsafe { wasi::clock_time_get(MONOTONIC, 1, &raw mut nanos) };
    Timestamp::from_nanos(nanos)
}

/// A random number, different in every VM. (The seed of `std`'s hash maps would panic where the host has no random numbers.)
pub(crate) fn random() -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: pointer and size are those of a live array.
    match unsafe { wasi::random_get(bytes.as_mut_ptr(), bytes.len()) } {
        0 => u64::from_le_bytes(bytes),
        _ => now().as_nanos(),
    }
}

// === log ===

struct HostLog;

impl log::Log for HostLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                log::Level::Error => LogLevel::Error,
                log::Level::Warn => LogLevel::Warn,
                log::Level::Info => LogLevel::Info,
                log::Level::Debug => LogLevel::Debug,
                log::Level::Trace => LogLevel::Trace,
            };
            write_log(level, &format!("idleguard: {}", record.args()));
        }
    }

    fn flush(&self) {}
}

fn write_log(level: LogLevel, text: &str) {
    // SAFETY: the pointer and the size are those of a live string. A log that can't be written is nothing to act on.
    let _ = unsafe { import::proxy_log(level as u32, text.as_ptr(), text.len()) };
}

/// Sends everything that is logged to Envoy, and a panic's message before the VM ends. Allowed from the
/// configuration on; the first call in a VM counts.
pub(crate) fn init_log() {
    static LOG: HostLog = HostLog;
    let mut level = LogLevel::Info as u32;
    // SAFETY: the pointer is to a live number.
    let status = unsafe { import::proxy_get_log_level(&raw mut level) };
    let filter = match (status, level) {
        (OK, 0) => log::LevelFilter::Trace,
        (OK, 1) => log::LevelFilter::Debug,
        (OK, 3) => log::LevelFilter::Warn,
        (OK, 4 | 5) => log::LevelFilter::Error,
        _ => log::LevelFilter::Info,
    };
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(filter);
    }
    std::panic::set_hook(Box::new(|panic| write_log(LogLevel::Critical, &format!("idleguard: {panic}"))));
}

/// How often the failures of one call are told.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// A call that failed: when that was last told, and how often it has failed since.
struct Reported {
    call: &'static str,
    at: Timestamp,
    untold: u64,
}

thread_local! {
    static REPORTED: RefCell<Vec<Reported>> = const { RefCell::new(Vec::new()) };
}

/// Logs that a call failed, at most once a minute for each call in a VM: what fails, fails for every request.
pub(crate) fn report(error: HostError) {
    let HostError { call, status } = error;
    let now = now();
    let untold = REPORTED.with(|reported| {
        let mut reported = reported.try_borrow_mut().ok()?;
        match reported.iter_mut().find(|reported| reported.call == call) {
            None => {
                reported.push(Reported { call, at: now, untold: 0 });
                Some(0)
            }
            Some(known) if now.since(known.at) >= REPORT_EVERY => {
                known.at = now;
                Some(std::mem::take(&mut known.untold))
            }
            Some(known) => {
                known.untold = known.untold.saturating_add(1);
                None
            }
        }
    });
    match untold {
        None => {}
        Some(0) => log::warn!("Envoy refused {call} with status {status}"),
        Some(more) => {
            log::warn!("Envoy refused {call} with status {status}, and {more} times since the last such line")
        }
    }
}

// === configuration and bytes ===

/// The plugin configuration. Allowed while the root context is being configured.
pub(crate) fn configuration(size: usize) -> Result<Vec<u8>, HostError> {
    buffer(BufferType::PluginConfiguration, 0, size)
}

/// Up to `max_size` bytes of `buffer` from `start` on. Allowed in the callback that announces the buffer.
pub(crate) fn buffer(buffer: BufferType, start: usize, max_size: usize) -> Result<Vec<u8>, HostError> {
    if max_size == 0 {
        return Ok(Vec::new()); // the host would call it an error
    }
    fetch("proxy_get_buffer_bytes", |data, size| {
        // SAFETY: both out-pointers are live for the call.
        unsafe { import::proxy_get_buffer_bytes(buffer as u32, start, max_size, data, size) }
    })
}

/// Puts `data` in the place of all `size` bytes of `buffer`. Allowed in the callback that announces the buffer.
pub(crate) fn replace_buffer(buffer: BufferType, size: usize, data: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointer and size are those of a live slice.
    checked("proxy_set_buffer_bytes", unsafe {
        import::proxy_set_buffer_bytes(buffer as u32, 0, size, data.as_ptr(), data.len())
    })
}

// === headers ===

/// The request's headers, serialized as [`header_map::pairs`](idleguard_core::header_map::pairs) reads them. Allowed while they
/// pass.
pub(crate) fn request_headers() -> Result<Vec<u8>, HostError> {
    header_map_of(MapType::HttpRequestHeaders)
}

/// The same of its trailers. Allowed while those pass.
pub(crate) fn request_trailers() -> Result<Vec<u8>, HostError> {
    header_map_of(MapType::HttpRequestTrailers)
}

fn header_map_of(map: MapType) -> Result<Vec<u8>, HostError> {
    fetch("proxy_get_header_map_pairs", |data, size| {
        // SAFETY: both out-pointers are live for the call.
        unsafe { import::proxy_get_header_map_pairs(map as u32, data, size) }
    })
}

/// Sets a request header that occurs at most once. Allowed while the request's headers pass.
pub(crate) fn replace_request_header(name: &[u8], value: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointers and sizes are those of live slices.
    checked("proxy_replace_header_map_value", unsafe {
        let map = MapType::HttpRequestHeaders as u32;
        import::proxy_replace_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
}

/// Adds a request header. One that isn't there is cheaper to add than to replace. Allowed while the request's headers pass.
pub(crate) fn add_request_header(name: &[u8], value: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointers and sizes are those of live slices.
    checked("proxy_add_header_map_value", unsafe {
        let map = MapType::HttpRequestHeaders as u32;
        import::proxy_add_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
}

/// Removes all request headers called `name`. Allowed while the request's headers pass.
pub(crate) fn remove_request_header(name: &[u8]) -> Result<(), HostError> {
    remove_from(MapType::HttpRequestHeaders, name)
}

/// Removes all request trailers called `name`. Allowed while the request's trailers pass.
pub(crate) fn remove_request_trailer(name: &[u8]) -> Result<(), HostError> {
    remove_from(MapType::HttpRequestTrailers, name)
}

fn remove_from(map: MapType, name: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointer and size are those of a live slice.
    checked("proxy_remove_header_map_value", unsafe {
        import::proxy_remove_header_map_value(map as u32, name.as_ptr(), name.len())
    })
}

/// Answers the request in the application's place. Allowed in the callbacks of a request.
pub(crate) fn respond(code: u32, details: &str, body: &str) -> Result<(), HostError> {
    let no_headers = 0_u32.to_le_bytes();
    // SAFETY: pointers and sizes are those of live slices; -1 means that the answer is not gRPC's.
    checked("proxy_send_local_response", unsafe {
        import::proxy_send_local_response(
            code,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            no_headers.as_ptr(),
            no_headers.len(),
            -1,
        )
    })
}

// === properties ===

/// A property by its path, whose parts are separated by NUL; `None` if there is none. Allowed in every callback of a
/// stream.
pub(crate) fn property(path: &[u8]) -> Result<Option<Vec<u8>>, HostError> {
    let value = fetch("proxy_get_property", |data, size| {
        // SAFETY: pointer and size are those of a live slice, both out-pointers are live for the call.
        unsafe { import::proxy_get_property(path.as_ptr(), path.len(), data, size) }
    });
    match value {
        Err(HostError { status: NOT_FOUND, .. }) => Ok(None),
        other => other.map(Some),
    }
}

/// Sets a property, which others find in the filter state under `wasm.` and its name. Allowed in every callback of a
/// stream.
pub(crate) fn set_property(path: &[u8], value: &[u8]) -> Result<(), HostError> {
    // SAFETY: pointers and sizes are those of live slices.
    checked("proxy_set_property", unsafe {
        import::proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len())
    })
}

/// Whether there is a property, and it is empty. Nothing is handed over, so it costs a quarter of what a property with a value costs. Allowed in
/// every callback of a stream.
pub(crate) fn is_marked(mark: &[u8]) -> Result<bool, HostError> {
    Ok(property(mark)?.is_some_and(|value| value.is_empty()))
}

/// How long a property lasts that a stream sets; by default as long as one pass through the filters. (Envoy begins anew when it
/// redirects a request internally.)
#[derive(Clone, Copy, Debug)]
pub(crate) enum LifeSpan {
    Request = 1,
    Connection = 2,
}

/// Has a property that [`set_property`] sets last for so long. Allowed while the root context is being configured.
pub(crate) fn keep_property(name: &[u8], span: LifeSpan) -> Result<(), HostError> {
    const FUNCTION: &[u8] = b"declare_property";
    // envoy.source.extensions.common.wasm.DeclarePropertyArguments: `name` is field 1, `span` field 5. (Lengths up to 127 are one byte.)
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX) & 0x7f;
    let argument = [&[0x0a, length], name, &[0x28, span as u8]].concat();
    fetch("proxy_call_foreign_function", |data, size| {
        // SAFETY: pointers and sizes are those of live slices, both out-pointers are live for the call.
        unsafe {
            let (name, argument) = (FUNCTION, argument.as_slice());
            import::proxy_call_foreign_function(
                name.as_ptr(),
                name.len(),
                argument.as_ptr(),
                argument.len(),
                data,
                size,
            )
        }
    })
    .map(drop)
}

// === what workers share ===

/// The value that some worker stored under `key`, empty if none did, and its version. Allowed in every callback.
pub(crate) fn shared_data(key: &[u8]) -> Result<(Vec<u8>, u32), HostError> {
    let mut version = 0;
    let value = fetch("proxy_get_shared_data", |data, size| {
        // SAFETY: pointer and size are those of a live slice, the out-pointers are live for the call.
        unsafe { import::proxy_get_shared_data(key.as_ptr(), key.len(), data, size, &raw mut version) }
    });
    match value {
        // Any version will do for a first write; with 0 it would be unconditional, and two could write.
        Err(HostError { status: NOT_FOUND, .. }) => Ok((Vec::new(), u32::MAX)),
        other => other.map(|value| (value, version)),
    }
}

/// Stores `value` if the version is still `version`. Returns whether it was. Allowed in every callback.
pub(crate) fn set_shared_data(key: &[u8], value: &[u8], version: u32) -> Result<bool, HostError> {
    const CAS_MISMATCH: u32 = 8;
    // SAFETY: pointers and sizes are those of live slices.
    let status =
        unsafe { import::proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), version) };
    match status {
        CAS_MISMATCH => Ok(false),
        status => checked("proxy_set_shared_data", status).map(|()| true),
    }
}

// === connections ===

/// Makes the stream of `context` the one that the following calls are about. Allowed in a tick, and in the
/// callbacks of a connection, which must enter its own context again.
pub(crate) fn enter(context: u32) -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked("proxy_set_effective_context", unsafe { import::proxy_set_effective_context(context) })
}

/// Closes the connection of the current stream, towards the pool.
pub(crate) fn close_connection() -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked("proxy_close_stream", unsafe { import::proxy_close_stream(StreamType::Downstream as u32) })
}

// === requests of our own ===

/// Sends a request without a body to `cluster`, for which Envoy waits for `timeout`. Its response is not handed over. Allowed
/// in every callback. Envoy may open a connection before it returns, and calls back for it.
pub(crate) fn send_request(cluster: &str, headers: &[(&str, &str)], timeout: Duration) -> Result<(), HostError> {
    let headers = header_map::serialize(headers);
    let no_trailers = 0_u32.to_le_bytes();
    let timeout = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    let mut token = 0;
    // SAFETY: pointers and sizes are those of live slices, or null and 0; the out-pointer is live for the call.
    checked("proxy_http_call", unsafe {
        import::proxy_http_call(
            cluster.as_ptr(),
            cluster.len(),
            headers.as_ptr(),
            headers.len(),
            std::ptr::null(),
            0,
            no_trailers.as_ptr(),
            no_trailers.len(),
            timeout,
            &raw mut token,
        )
    })
}

// === timers and metrics ===

/// Has Envoy call the root context's tick every `period`, rounded to milliseconds. Allowed in callbacks of a root context.
pub(crate) fn set_tick_period(period: Duration) -> Result<(), HostError> {
    let period = u32::try_from(period.as_millis()).unwrap_or(u32::MAX);
    // SAFETY: no pointers.
    checked("proxy_set_tick_period_milliseconds", unsafe { import::proxy_set_tick_period_milliseconds(period) })
}

/// A metric of Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetricId(u32);

/// Finds or creates a metric.
pub(crate) fn define_metric(kind: Kind, name: &str) -> Result<MetricId, HostError> {
    let kind = match kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    let mut id = 0;
    // SAFETY: pointer and size are those of a live string, the out-pointer is live for the call.
    let status = unsafe { import::proxy_define_metric(kind as u32, name.as_ptr(), name.len(), &raw mut id) };
    checked("proxy_define_metric", status)?;
    Ok(MetricId(id))
}

/// Adds to a counter or a gauge.
pub(crate) fn add_to_metric(metric: MetricId, offset: i64) -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked("proxy_increment_metric", unsafe { import::proxy_increment_metric(metric.0, offset) })
}

/// Sets a gauge, or adds a value to a histogram.
pub(crate) fn record_metric(metric: MetricId, value: u64) -> Result<(), HostError> {
    // SAFETY: no pointers.
    checked("proxy_record_metric", unsafe { import::proxy_record_metric(metric.0, value) })
}
