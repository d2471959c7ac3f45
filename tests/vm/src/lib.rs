//! The built `idleguard.wasm` on a host of our own, which does what Envoy does, or fails, or hands over garbage, as a test wants it.
//!
//! ```no_run
//! use idleguard_vm_tests::{Filter, Map};
//!
//! # fn main() -> anyhow::Result<()> {
//! let mut vm = Filter::load("idleguard.wasm")?.start()?;
//! let root = vm.configure(r#"{"filter": "http", "client_ip": {"trusted_proxies": ["10.0.0.0/8"]}}"#)?;
//! vm.host().set_property(&["filter_state", "idleguard.peer"], "10.0.0.1:41000");
//! vm.host().set_headers(Map::Request, &[(":method", "GET"), ("x-forwarded-for", "203.0.113.5")]);
//! let request = vm.stream(root)?;
//! vm.on_request_headers(request)?;
//! println!("{:?}", vm.host().headers(Map::Request));
//! # Ok(())
//! # }
//! ```

mod host;
mod imports;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use wasmtime::{Config, Engine, Instance, Linker, Module, Store, WasmParams, WasmResults};

pub use self::host::{Buffer, Faults, Headers, Host, Map, Metric};

/// One VM with the filter, as a worker of Envoy's has it.
pub struct Vm {
    store: Store<Host>,
    instance: Instance,
    last_context: i32,
}

/// The compiled module, from which any number of VMs can be made.
pub struct Filter {
    engine: Engine,
    module: Module,
    linker: Linker<Host>,
}

impl Filter {
    /// Compiles the module.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let mut config = Config::new();
        config.consume_fuel(true);
        let engine = Engine::new(&config)?;
        let path = path.as_ref();
        let module = Module::from_file(&engine, path)
            .with_context(|| format!("no filter at {}: `make build` makes it", path.display()))?;
        let mut linker = Linker::new(&engine);
        imports::define(&mut linker)?;
        linker.define_unknown_imports_as_traps(&module)?;
        Ok(Self { engine, module, linker })
    }

    /// The names of what the module imports.
    pub fn imports(&self) -> Vec<String> {
        self.module.imports().map(|import| import.name().to_owned()).collect()
    }

    /// A new VM, which has run nothing but its initialization.
    pub fn start(&self) -> Result<Vm> {
        let mut store = Store::new(&self.engine, Host::default());
        store.set_fuel(u64::MAX)?;
        let instance = self.linker.instantiate(&mut store, &self.module)?;
        let mut vm = Vm { store, instance, last_context: 0 };
        vm.call::<(), ()>("_initialize", ())?;
        Ok(vm)
    }
}

impl Vm {
    /// From here on so many instructions may be run: a loop without an end becomes an error.
    pub fn allow(&mut self, instructions: u64) -> Result<()> {
        self.store.set_fuel(instructions)
    }

    /// The bytes of memory that the VM has; Wasm memory grows by pages of 64 KiB, and never shrinks.
    pub fn memory(&mut self) -> Result<usize> {
        let memory = self.instance.get_memory(&mut self.store, "memory").context("no memory")?;
        Ok(memory.data_size(&self.store))
    }

    /// What the filter sees and has done.
    pub fn host(&mut self) -> &mut Host {
        self.store.data_mut()
    }

    /// Makes a root context and configures it with this JSON; the error holds what the filter logged.
    pub fn configure(&mut self, json: &str) -> Result<i32> {
        let root = self.context(0)?;
        self.host().set_buffer(Buffer::PluginConfiguration, json.as_bytes());
        let size = i32::try_from(json.len())?;
        let accepted = self.call::<(i32, i32), i32>("proxy_on_configure", (root, size))?;
        ensure!(accepted == 1, "refused: {:?}", self.host().log());
        Ok(root)
    }

    /// Makes the context of a request or a connection.
    pub fn stream(&mut self, root: i32) -> Result<i32> {
        self.context(root)
    }

    fn context(&mut self, parent: i32) -> Result<i32> {
        self.last_context += 1;
        let id = self.last_context;
        self.call::<(i32, i32), ()>("proxy_on_context_create", (id, parent))?;
        Ok(id)
    }

    /// The request's headers, which the host was given before; the action that the filter wants.
    pub fn on_request_headers(&mut self, stream: i32) -> Result<i32> {
        let count = i32::try_from(self.host().headers(Map::Request).len())?;
        self.call("proxy_on_request_headers", (stream, count, 1))
    }

    /// The response's headers, which the host was given before; the action that the filter wants.
    pub fn on_response_headers(&mut self, stream: i32) -> Result<i32> {
        let count = i32::try_from(self.host().headers(Map::Response).len())?;
        self.call("proxy_on_response_headers", (stream, count, 0))
    }

    /// A new connection; the action that the filter wants.
    pub fn on_new_connection(&mut self, stream: i32) -> Result<i32> {
        self.call("proxy_on_new_connection", stream)
    }

    /// Bytes pass on a connection, towards the far end or from it; the action that the filter wants.
    pub fn on_data(&mut self, stream: i32, from: Buffer, bytes: &[u8]) -> Result<i32> {
        self.host().set_buffer(from, bytes);
        let callback = match from {
            Buffer::Upstream => "proxy_on_upstream_data",
            _ => "proxy_on_downstream_data",
        };
        self.call(callback, (stream, i32::try_from(bytes.len())?, 0))
    }

    /// A tick of a root context.
    pub fn on_tick(&mut self, root: i32) -> Result<()> {
        self.call("proxy_on_tick", root)
    }

    /// The end of a request or a connection.
    pub fn end(&mut self, stream: i32) -> Result<()> {
        self.call("proxy_on_delete", stream)
    }

    /// Calls an export: a callback that has no function of its own here.
    pub fn call<P: WasmParams, R: WasmResults>(&mut self, name: &str, parameters: P) -> Result<R> {
        let function = self.instance.get_typed_func::<P, R>(&mut self.store, name)?;
        function.call(&mut self.store, parameters).with_context(|| format!("{name}: {:?}", self.store.data().log()))
    }
}
