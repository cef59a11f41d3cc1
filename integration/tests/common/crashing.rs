//! The filter, made to crash: it has no way to crash that anybody knows of.

use std::path::Path;

use anyhow::{Context, Result};
use walrus::{
    ExportItem, FunctionBuilder, FunctionId, Module, ModuleConfig, ValType,
    ir::{BinaryOp, LoadKind, MemArg, StoreKind, UnaryOp},
};

/// The header of a request that makes the filter of [`at_a_request`] crash.
pub(crate) const CRASH: &str = "x-crash";

/// Writes a copy of the filter that crashes before it looks at a request with the header [`CRASH`].
pub(crate) fn at_a_request(filter: &Path, to: &Path) -> Result<()> {
    let mut module = read(filter)?;
    let original = exported(&module, "proxy_on_request_headers")?;
    let allocate = exported(&module, "malloc")?;
    let memory = module.get_memory_id()?;
    let value = module
        .imports
        .get_func("env", "proxy_get_header_map_value")?;

    let mut builder = FunctionBuilder::new(&mut module.types, &[ValType::I32; 3], &[ValType::I32]);
    let args = [(); 3].map(|()| module.locals.add(ValType::I32));
    let at = module.locals.add(ValType::I32);
    let word = |offset| MemArg { align: 1, offset };
    let name: [u8; 8] = format!("{CRASH}\0").as_bytes().try_into()?;
    let mut body = builder.func_body();
    // Room for the name, then for where the value is and how long it is.
    body.i32_const(16).call(allocate).local_set(at);
    for (offset, what) in [(0, i64::from_le_bytes(name)), (8, 0)] {
        body.local_get(at).i64_const(what);
        body.store(memory, StoreKind::I64 { atomic: false }, word(offset));
    }
    body.i32_const(0)
        .local_get(at)
        .i32_const(i32::try_from(CRASH.len())?);
    for offset in [8, 12] {
        body.local_get(at).i32_const(offset).binop(BinaryOp::I32Add);
    }
    body.call(value).unop(UnaryOp::I32Eqz);
    body.local_get(at);
    body.load(memory, LoadKind::I32 { atomic: false }, word(12));
    body.i32_const(0)
        .binop(BinaryOp::I32Ne)
        .binop(BinaryOp::I32And);
    body.if_else(None, |then| _ = then.unreachable(), |_| ());
    for arg in args {
        body.local_get(arg);
    }
    body.call(original);
    let crashing = builder.finish(args.to_vec(), &mut module.funcs);
    export(&mut module, "proxy_on_request_headers", crashing)?;
    module.emit_wasm_file(to)
}

/// Writes a copy of the filter that crashes as soon as it is handed its configuration.
pub(crate) fn at_its_start(filter: &Path, to: &Path) -> Result<()> {
    let mut module = read(filter)?;
    let mut builder = FunctionBuilder::new(&mut module.types, &[ValType::I32; 2], &[ValType::I32]);
    let args = [(); 2].map(|()| module.locals.add(ValType::I32));
    builder.func_body().unreachable();
    let crashing = builder.finish(args.to_vec(), &mut module.funcs);
    export(&mut module, "proxy_on_configure", crashing)?;
    module.emit_wasm_file(to)
}

fn read(filter: &Path) -> Result<Module> {
    ModuleConfig::new()
        .generate_producers_section(false)
        .parse_file(filter)
}

fn exported(module: &Module, name: &str) -> Result<FunctionId> {
    module.exports.get_func(name)
}

fn export(module: &mut Module, name: &str, function: FunctionId) -> Result<()> {
    let mut exports = module.exports.iter_mut();
    let export = exports.find(|export| export.name == name);
    export.with_context(|| format!("no export {name}"))?.item = ExportItem::Function(function);
    Ok(())
}
