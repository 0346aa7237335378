//! Board, processors, memory, clock, screen.

use super::{Accel, Args, ArgvError, Begin, LaunchFacts, Sandbox, escape, escape_path, pci, root_bus};
use backstay_model::{VirtualHardware, VmSpec};
use serde_json::json;

pub(super) fn push(args: &mut Args, spec: &VmSpec, facts: &LaunchFacts) -> Result<(), ArgvError> {
    check_machine_type(spec)?;
    args.flag("-no-user-config");
    args.flag("-nodefaults");
    args.option("-name", format!("guest={},debug-threads=on", escape(spec.name.as_str())));
    args.option("-uuid", spec.bios_guid.hyphenated().to_string());
    push_board(args, spec, facts)?;
    args.option("-cpu", facts.accel.cpu_model());
    args.option("-m", format!("{}M", spec.memory_mib));
    // One socket: desktop Windows uses no more than two.
    args.option("-smp", format!("{n},sockets=1,cores={n},threads=1", n = spec.cpu.count));
    args.option("-rtc", "base=utc,driftfix=slew");
    if facts.sandbox == Sandbox::On {
        args.option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    }
    // The worker decides when the guest runs.
    args.flag("-S");
    if facts.begin == Begin::Incoming {
        args.option("-incoming", "defer");
    }
    args.option("-boot", "menu=off,strict=on");
    let guid = facts.generation_id.map_or("auto".to_owned(), |id| id.hyphenated().to_string());
    args.option("-device", format!("vmgenid,guid={guid},id=generation"));
    push_screen(args, spec.hardware);
    Ok(())
}

fn check_machine_type(spec: &VmSpec) -> Result<(), ArgvError> {
    let (hardware, family, example) = match spec.hardware {
        VirtualHardware::Gen1 => ("generation 1", "pc-i440fx-", "pc-i440fx-10.0"),
        VirtualHardware::Gen2 => ("generation 2", "pc-q35-", "pc-q35-10.0"),
    };
    let versioned = spec.machine_type.strip_prefix(family).is_some_and(|version| {
        !version.is_empty()
            && version.split('.').all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    if versioned {
        Ok(())
    } else {
        Err(ArgvError::MachineType { machine: spec.machine_type.clone(), hardware, example })
    }
}

fn push_board(args: &mut Args, spec: &VmSpec, facts: &LaunchFacts) -> Result<(), ArgvError> {
    let mut machine = format!("{},dump-guest-core=off", spec.machine_type);
    if spec.hardware == VirtualHardware::Gen2 {
        let firmware = facts.firmware.as_ref().ok_or(ArgvError::NoFirmware)?;
        let file = |name: &str, path: &std::path::Path, read_only: bool| {
            json!({ "driver": "file", "node-name": name, "filename": path, "read-only": read_only })
                .to_string()
        };
        args.option("-blockdev", file("firmware-code", &firmware.code, true));
        args.option("-blockdev", file("firmware-vars", &firmware.vars, false));
        machine.push_str(",pflash0=firmware-code,pflash1=firmware-vars");
    }
    args.option("-machine", machine);
    args.option(
        "-accel",
        match facts.accel {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg,thread=multi",
        },
    );
    // A guest that suspends to memory or disk by itself would look switched off and not come back.
    let power = match spec.hardware {
        VirtualHardware::Gen1 => "PIIX4_PM",
        VirtualHardware::Gen2 => "ICH9-LPC",
    };
    args.option("-global", format!("{power}.disable_s3=1"));
    args.option("-global", format!("{power}.disable_s4=1"));
    Ok(())
}

/// VGA and a tablet: absolute positions, without which a remote mouse pointer drifts.
fn push_screen(args: &mut Args, hardware: VirtualHardware) {
    let bus = root_bus(hardware);
    args.option("-device", format!("VGA,id=video0,bus={bus},addr={:#x}", pci::VGA));
    args.option(
        "-device",
        match hardware {
            // The function of the chip set that real PIIX boards have: every old guest has a driver.
            VirtualHardware::Gen1 => format!("piix3-usb-uhci,id=usb,bus={bus},addr=1.2"),
            VirtualHardware::Gen2 => format!("qemu-xhci,id=usb,bus={bus},addr={:#x}", pci::USB_GEN2),
        },
    );
    args.option("-device", "usb-tablet,id=tablet,bus=usb.0,port=1");
}

/// VNC listens on a unix socket in the run folder; authentication is the daemon's.
pub(super) fn push_vnc(args: &mut Args, path: &std::path::Path) {
    args.option("-vnc", format!("unix:{}", escape_path(path)));
}
