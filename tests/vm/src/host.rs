//! What the mocked host knows: header maps, properties, buffers, metrics, a clock; and what the filter asked of it.

use std::collections::BTreeMap;
use std::fmt;

/// Header lines, in order.
pub type Headers = Vec<(Vec<u8>, Vec<u8>)>;

/// A header map (proxy-wasm ABI 0.2.1, `proxy_map_type_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Map {
    /// The request's headers.
    Request = 0,
    /// The response's headers.
    Response = 2,
}

/// A buffer (`proxy_buffer_type_t`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum Buffer {
    /// Bytes from the client.
    Downstream = 2,
    /// Bytes from the far end.
    Upstream = 3,
    /// The plugin's configuration.
    PluginConfiguration = 7,
}

/// A metric that the filter defined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// The sum of a counter, the last value of anything else.
    pub value: u64,
}

/// What a host does wrong.
pub trait Faults: Send {
    /// The status that the call of an import fails with; `None` lets it do its work.
    fn status(&mut self, call: &'static str) -> Option<i32>;

    /// The bytes that the filter gets in place of `bytes`.
    fn spoil(&mut self, bytes: &[u8]) -> Vec<u8> {
        bytes.to_vec()
    }
}

#[derive(Default)]
struct Fault(Option<Box<dyn Faults>>);

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "faults" } else { "none" })
    }
}

/// One worker's host.
#[derive(Debug, Default)]
pub struct Host {
    fault: Fault,
    shared: BTreeMap<Vec<u8>, (Vec<u8>, u32)>,
    headers: BTreeMap<i32, Headers>,
    buffers: BTreeMap<i32, Vec<u8>>,
    properties: BTreeMap<Vec<u8>, Vec<u8>>,
    metrics: Vec<Metric>,
    nanos: u64,
    log: Vec<String>,
    responses: Vec<u32>,
}

impl Host {
    /// The lines of a header map; Envoy gives the names in lower case.
    pub fn headers(&self, map: Map) -> &[(Vec<u8>, Vec<u8>)] {
        self.headers.get(&(map as i32)).map_or(&[], Vec::as_slice)
    }

    /// Gives a header map these lines.
    pub fn set_headers(&mut self, map: Map, lines: &[(&str, &str)]) {
        let lines = lines.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.headers.insert(map as i32, lines);
    }

    /// The only value of a header.
    pub fn header(&self, map: Map, name: &str) -> Option<&[u8]> {
        let mut own = self.headers(map).iter().filter(|(present, _)| present == name.as_bytes());
        let (_, value) = own.next()?;
        own.next().is_none().then_some(value)
    }

    /// A property.
    pub fn property(&self, path: &[&str]) -> Option<&[u8]> {
        self.properties.get(path.join("\0").as_bytes()).map(Vec::as_slice)
    }

    /// Sets a property.
    pub fn set_property(&mut self, path: &[&str], value: impl AsRef<[u8]>) {
        self.properties.insert(path.join("\0").into(), value.as_ref().to_vec());
    }

    /// As [`set_headers`](Self::set_headers), with bytes that need not be text.
    pub fn set_raw_headers(&mut self, map: Map, lines: Headers) {
        self.headers.insert(map as i32, lines);
    }

    /// Stores what another worker would have shared.
    pub fn set_shared(&mut self, key: &[u8], value: &[u8]) {
        self.share(key, value.to_vec(), 0);
    }

    /// Fills a buffer.
    pub fn set_buffer(&mut self, buffer: Buffer, bytes: &[u8]) {
        self.buffers.insert(buffer as i32, bytes.to_vec());
    }

    /// The metric of this name.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }

    /// Lets time pass on the monotonic clock, which stands still otherwise.
    pub fn advance(&mut self, nanos: u64) {
        self.nanos = self.nanos.wrapping_add(nanos);
    }

    /// From now on calls go wrong; `None` ends that.
    pub fn set_faults(&mut self, faults: Option<Box<dyn Faults>>) {
        self.fault = Fault(faults);
    }

    /// Forgets what was logged.
    pub fn forget_log(&mut self) {
        self.log.clear();
    }

    /// What was logged.
    pub fn log(&self) -> &[String] {
        &self.log
    }

    /// The statuses of the answers that the filter gave in the application's place.
    pub fn responses(&self) -> &[u32] {
        &self.responses
    }

    // === What the imports do ===

    /// The status that a call is to fail with.
    pub(crate) fn on_call(&mut self, name: &'static str) -> Option<i32> {
        self.fault.0.as_mut()?.status(name)
    }

    pub(crate) fn spoilt(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.fault.0.as_mut().map_or_else(|| bytes.to_vec(), |faults| faults.spoil(bytes))
    }

    pub(crate) fn shared(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
        self.shared.get(key).cloned()
    }

    /// Whether the version was still this one (0: whichever), so that the value was stored.
    pub(crate) fn share(&mut self, key: &[u8], value: Vec<u8>, version: u32) -> bool {
        let stored = self.shared.entry(key.to_vec()).or_default();
        let is_current = version == 0 || stored.1 == version;
        if is_current {
            *stored = (value, stored.1.wrapping_add(1).max(1));
        }
        is_current
    }

    pub(crate) fn nanos(&self) -> u64 {
        self.nanos
    }

    pub(crate) fn write_log(&mut self, text: &[u8]) {
        self.log.push(String::from_utf8_lossy(text).into_owned());
    }

    pub(crate) fn respond(&mut self, status: u32) {
        self.responses.push(status);
    }

    /// A header map as the ABI serializes it.
    pub(crate) fn pairs(&self, map: i32) -> Vec<u8> {
        let lines = self.headers.get(&map).map_or(&[][..], Vec::as_slice);
        let size = |text: &[u8]| u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = u32::try_from(lines.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
        for (name, value) in lines {
            bytes.extend(size(name));
            bytes.extend(size(value));
        }
        for text in lines.iter().flat_map(|(name, value)| [name, value]) {
            bytes.extend(text);
            bytes.push(0);
        }
        bytes
    }

    pub(crate) fn add_header(&mut self, map: i32, name: &[u8], value: &[u8]) {
        self.headers.entry(map).or_default().push((name.to_ascii_lowercase(), value.to_vec()));
    }

    /// As Envoy does it: the first occurrence is rewritten, others stay.
    pub(crate) fn replace_header(&mut self, map: i32, name: &[u8], value: &[u8]) {
        let lines = self.headers.entry(map).or_default();
        match lines.iter_mut().find(|(present, _)| present.eq_ignore_ascii_case(name)) {
            Some((_, present)) => *present = value.to_vec(),
            None => lines.push((name.to_ascii_lowercase(), value.to_vec())),
        }
    }

    pub(crate) fn remove_header(&mut self, map: i32, name: &[u8]) {
        self.headers.entry(map).or_default().retain(|(present, _)| !present.eq_ignore_ascii_case(name));
    }

    pub(crate) fn property_at(&self, path: &[u8]) -> Option<Vec<u8>> {
        self.properties.get(path).cloned()
    }

    pub(crate) fn set_property_at(&mut self, path: &[u8], value: &[u8]) {
        self.properties.insert(path.to_vec(), value.to_vec());
    }

    pub(crate) fn buffer(&self, buffer: i32, start: usize, size: usize) -> Option<Vec<u8>> {
        let bytes = self.buffers.get(&buffer)?.get(start..)?;
        Some(bytes[..size.min(bytes.len())].to_vec())
    }

    pub(crate) fn define_metric(&mut self, name: &[u8]) -> u32 {
        let name = String::from_utf8_lossy(name).into_owned();
        let at = self.metrics.iter().position(|metric| metric.name == name).unwrap_or_else(|| {
            self.metrics.push(Metric { name, value: 0 });
            self.metrics.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    pub(crate) fn metric_at(&mut self, id: u32) -> Option<&mut Metric> {
        self.metrics.get_mut(usize::try_from(id).ok()?)
    }
}
