//! The imports of the module (proxy-wasm ABI 0.2.1, and the part of WASI preview 1 that Envoy offers), tied to [`Host`].

use anyhow::{Context, Result, bail};
use wasmtime::{Caller, Linker};

use crate::host::Host;

type Vm<'a> = Caller<'a, Host>;

const OK: i32 = 0;
const NOT_FOUND: i32 = 1;
const BAD_ARGUMENT: i32 = 2;
const CAS_MISMATCH: i32 = 8;

fn memory(vm: &mut Vm<'_>) -> Result<wasmtime::Memory> {
    vm.get_export("memory").and_then(wasmtime::Extern::into_memory).context("no memory")
}

fn read(vm: &mut Vm<'_>, at: u32, size: u32) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(size)?];
    memory(vm)?.read(&*vm, usize::try_from(at)?, &mut bytes)?;
    Ok(bytes)
}

fn write(vm: &mut Vm<'_>, at: u32, bytes: &[u8]) -> Result<()> {
    Ok(memory(vm)?.write(vm, usize::try_from(at)?, bytes)?)
}

/// Hands bytes over in memory that the module allocates, as Envoy does.
fn hand_over(vm: &mut Vm<'_>, bytes: &[u8], data: u32, size: u32) -> Result<i32> {
    let bytes = &*vm.data_mut().spoilt(bytes);
    let length = u32::try_from(bytes.len())?;
    let mut at = 0;
    if length > 0 {
        let allocate = vm.get_export("proxy_on_memory_allocate").and_then(wasmtime::Extern::into_func);
        at = allocate.context("no allocator")?.typed::<u32, u32>(&*vm)?.call(&mut *vm, length)?;
        write(vm, at, bytes)?;
    }
    write(vm, data, &at.to_le_bytes())?;
    write(vm, size, &length.to_le_bytes())?;
    Ok(OK)
}

/// Every import that the filter may call. Any other traps.
pub(crate) fn define(linker: &mut Linker<Host>) -> Result<()> {
    log_and_clock(linker)?;
    headers(linker)?;
    properties_and_buffers(linker)?;
    metrics(linker)
}

fn log_and_clock(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap("env", "proxy_log", |mut vm: Vm<'_>, _level: u32, at: u32, size: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_log") {
            return Ok(status);
        }
        let text = read(&mut vm, at, size)?;
        vm.data_mut().write_log(&text);
        anyhow::Ok(OK)
    })?;
    linker.func_wrap("env", "proxy_get_log_level", |mut vm: Vm<'_>, level: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_get_log_level") {
            return Ok(status);
        }
        write(&mut vm, level, &2_u32.to_le_bytes())?;
        anyhow::Ok(OK)
    })?;
    linker.func_wrap("env", "proxy_set_tick_period_milliseconds", |mut vm: Vm<'_>, _period: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_set_tick_period_milliseconds") {
            return status;
        }
        OK
    })?;
    let wasi = "wasi_snapshot_preview1";
    linker.func_wrap(wasi, "clock_time_get", |mut vm: Vm<'_>, _clock: u32, _precision: u64, time: u32| {
        if let Some(status) = vm.data_mut().on_call("clock_time_get") {
            return Ok(status);
        }
        let nanos = vm.data().nanos();
        write(&mut vm, time, &nanos.to_le_bytes())?;
        anyhow::Ok(0)
    })?;
    linker.func_wrap(wasi, "random_get", |mut vm: Vm<'_>, at: u32, size: u32| {
        if let Some(status) = vm.data_mut().on_call("random_get") {
            return Ok(status);
        }
        // Random enough for a hash map's seed, and the same in every run.
        write(&mut vm, at, &vec![42; usize::try_from(size)?])?;
        anyhow::Ok(0)
    })?;
    linker.func_wrap(wasi, "environ_sizes_get", |mut vm: Vm<'_>, count: u32, size: u32| {
        if let Some(status) = vm.data_mut().on_call("environ_sizes_get") {
            return Ok(status);
        }
        write(&mut vm, count, &[0; 4])?;
        write(&mut vm, size, &[0; 4])?;
        anyhow::Ok(0)
    })?;
    linker.func_wrap(wasi, "environ_get", |_: Vm<'_>, _: u32, _: u32| 0)?;
    linker.func_wrap(wasi, "proc_exit", |_: Vm<'_>, code: u32| -> Result<()> { bail!("exit with {code}") })?;
    Ok(())
}

fn headers(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap("env", "proxy_get_header_map_pairs", |mut vm: Vm<'_>, map: i32, data: u32, size: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_get_header_map_pairs") {
            return Ok(status);
        }
        let bytes = vm.data().pairs(map);
        hand_over(&mut vm, &bytes, data, size)
    })?;
    type Edit = fn(&mut Host, i32, &[u8], &[u8]);
    let edits: [(&'static str, Edit); 2] =
        [("proxy_replace_header_map_value", Host::replace_header), ("proxy_add_header_map_value", Host::add_header)];
    for (import, edit) in edits {
        linker.func_wrap(
            "env",
            import,
            move |mut vm: Vm<'_>, map: i32, name: u32, name_size: u32, value: u32, value_size: u32| {
                if let Some(status) = vm.data_mut().on_call(import) {
                    return Ok(status);
                }
                let (name, value) = (read(&mut vm, name, name_size)?, read(&mut vm, value, value_size)?);
                edit(vm.data_mut(), map, &name, &value);
                anyhow::Ok(OK)
            },
        )?;
    }
    linker.func_wrap("env", "proxy_remove_header_map_value", |mut vm: Vm<'_>, map: i32, name: u32, size: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_remove_header_map_value") {
            return Ok(status);
        }
        let name = read(&mut vm, name, size)?;
        vm.data_mut().remove_header(map, &name);
        anyhow::Ok(OK)
    })?;
    linker.func_wrap(
        "env",
        "proxy_send_local_response",
        |mut vm: Vm<'_>, code: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: i32| {
            if let Some(status) = vm.data_mut().on_call("proxy_send_local_response") {
                return status;
            }
            vm.data_mut().respond(code);
            OK
        },
    )?;
    Ok(())
}

fn properties_and_buffers(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap("env", "proxy_get_property", |mut vm: Vm<'_>, path: u32, length: u32, data: u32, size: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_get_property") {
            return Ok(status);
        }
        let path = read(&mut vm, path, length)?;
        match vm.data().property_at(&path) {
            Some(value) => hand_over(&mut vm, &value, data, size),
            None => Ok(NOT_FOUND),
        }
    })?;
    linker.func_wrap(
        "env",
        "proxy_set_property",
        |mut vm: Vm<'_>, path: u32, length: u32, value: u32, size: u32| {
            if let Some(status) = vm.data_mut().on_call("proxy_set_property") {
                return Ok(status);
            }
            let (path, value) = (read(&mut vm, path, length)?, read(&mut vm, value, size)?);
            vm.data_mut().set_property_at(&path, &value);
            anyhow::Ok(OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_call_foreign_function",
        |mut vm: Vm<'_>, _: u32, _: u32, _: u32, _: u32, data: u32, size: u32| {
            if let Some(status) = vm.data_mut().on_call("proxy_call_foreign_function") {
                return Ok(status);
            }
            hand_over(&mut vm, b"", data, size)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_buffer_bytes",
        |mut vm: Vm<'_>, buffer: i32, start: u32, max_size: u32, data: u32, size: u32| {
            if let Some(status) = vm.data_mut().on_call("proxy_get_buffer_bytes") {
                return Ok(status);
            }
            match vm.data().buffer(buffer, usize::try_from(start)?, usize::try_from(max_size)?) {
                Some(bytes) => hand_over(&mut vm, &bytes, data, size),
                None => Ok(NOT_FOUND),
            }
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_buffer_bytes",
        |mut vm: Vm<'_>, _: u32, _: u32, _: u32, data: u32, size: u32| {
            if let Some(status) = vm.data_mut().on_call("proxy_set_buffer_bytes") {
                return Ok(status);
            }
            read(&mut vm, data, size).map(|_| OK)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_get_shared_data",
        |mut vm: Vm<'_>, key: u32, length: u32, data: u32, size: u32, version: u32| {
            if let Some(status) = vm.data_mut().on_call("proxy_get_shared_data") {
                return Ok(status);
            }
            let key = read(&mut vm, key, length)?;
            let Some((value, at)) = vm.data().shared(&key) else { return Ok(NOT_FOUND) };
            write(&mut vm, version, &at.to_le_bytes())?;
            hand_over(&mut vm, &value, data, size)
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_set_shared_data",
        |mut vm: Vm<'_>, key: u32, length: u32, data: u32, size: u32, version: u32| {
            if let Some(status) = vm.data_mut().on_call("proxy_set_shared_data") {
                return Ok(status);
            }
            let (key, value) = (read(&mut vm, key, length)?, read(&mut vm, data, size)?);
            anyhow::Ok(if vm.data_mut().share(&key, value, version) { OK } else { CAS_MISMATCH })
        },
    )?;
    linker.func_wrap(
        "env",
        "proxy_http_call",
        |mut vm: Vm<'_>, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, _: u32, token: u32| {
            if let Some(status) = vm.data_mut().on_call("proxy_http_call") {
                return Ok(status);
            }
            write(&mut vm, token, &7_u32.to_le_bytes())?;
            anyhow::Ok(OK)
        },
    )?;
    linker.func_wrap("env", "proxy_set_effective_context", |mut vm: Vm<'_>, _context: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_set_effective_context") {
            return status;
        }
        OK
    })?;
    linker.func_wrap("env", "proxy_close_stream", |mut vm: Vm<'_>, _stream: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_close_stream") {
            return status;
        }
        OK
    })?;
    Ok(())
}

fn metrics(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap("env", "proxy_define_metric", |mut vm: Vm<'_>, _kind: u32, name: u32, size: u32, id: u32| {
        if let Some(status) = vm.data_mut().on_call("proxy_define_metric") {
            return Ok(status);
        }
        let name = read(&mut vm, name, size)?;
        let defined = vm.data_mut().define_metric(&name);
        write(&mut vm, id, &defined.to_le_bytes())?;
        anyhow::Ok(OK)
    })?;
    linker.func_wrap("env", "proxy_increment_metric", |mut vm: Vm<'_>, id: u32, offset: i64| {
        if let Some(status) = vm.data_mut().on_call("proxy_increment_metric") {
            return status;
        }
        let Some(metric) = vm.data_mut().metric_at(id) else { return BAD_ARGUMENT };
        metric.value = metric.value.wrapping_add_signed(offset);
        OK
    })?;
    linker.func_wrap("env", "proxy_record_metric", |mut vm: Vm<'_>, id: u32, value: u64| {
        if let Some(status) = vm.data_mut().on_call("proxy_record_metric") {
            return status;
        }
        let Some(metric) = vm.data_mut().metric_at(id) else { return BAD_ARGUMENT };
        metric.value = value;
        OK
    })?;
    Ok(())
}
