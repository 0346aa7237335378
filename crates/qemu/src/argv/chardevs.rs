//! Control sockets, console sockets and logs.

use super::{Args, escape_path, machine};
use crate::paths::RunPaths;
use std::path::Path;

pub(super) fn push(args: &mut Args, paths: &RunPaths) {
    let listen =
        |id: &str, path: &Path| format!("socket,id={id},path={},server=on,wait=off", escape_path(path));
    for (id, path) in [("qmp", paths.qmp()), ("qmp2", paths.qmp_debug())] {
        args.option("-chardev", listen(id, &path));
        args.option("-mon", format!("chardev={id},mode=control"));
    }
    // Appending lets the worker cut the log short while QEMU writes it.
    let log = format!(",logfile={},logappend=on", escape_path(&paths.serial_log()));
    args.option("-chardev", listen("serial0", &paths.serial()) + &log);
    args.option("-device", "isa-serial,chardev=serial0,index=0,id=com1");
    machine::push_vnc(args, &paths.vnc());
    args.option("-pidfile", paths.pid().to_string_lossy());
    args.option("-D", paths.trace_log().to_string_lossy());
    args.option("-msg", "timestamp=on");
}
