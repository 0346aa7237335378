//! A guest with an operating system: its file system survives.

use backstay_e2e::{Host, Linux, linux_image};

#[test]
fn a_file_system_survives_checkpoint_disaster_and_revert() {
    let Some(image) = linux_image() else { return };
    let host = Host::start();
    let disk = host.vhd_from(&image, "demo.vhd");
    let drive = format!("virtio:0={}", disk.display());
    host.ok(&["vm", "create", "demo", "--memory", "192M", "--no-network", "--disk", &drive]);
    host.ok(&["vm", "start", "demo"]);
    let mut guest = Linux::booting(&host.console("demo"));
    guest.run("mkdir -p /data/a/b && for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=/data/a/b/$i bs=64k count=$i 2>/dev/null; done");
    guest.run("ln -s a/b /data/link && echo hello >/data/hello && sync");
    let sums = guest.run("cd /data && sha256sum a/b/* hello");
    assert_eq!(sums.lines().count(), 7, "{sums}");
    // Not yet on any disk: only the page cache and a process have these.
    guest.run("echo unsynced >/data/late; remembered=$((6 * 7))");

    host.ok(&["checkpoint", "create", "demo", "good"]);

    guest.run("rm -rf /data/a /data/hello /data/late && sync; remembered=0");
    guest.run("dd if=/dev/zero of=$(findfs LABEL=data) bs=64k count=64 2>/dev/null; sync");
    host.ok(&["checkpoint", "revert", "demo", "--yes"]);

    let mut guest = Linux::attach(&host.console("demo"));
    assert_eq!(guest.run("echo $remembered"), "42", "the shell's memory is back");
    assert_eq!(guest.run("cat /data/late"), "unsynced", "so is what no disk had seen");
    assert_eq!(guest.run("cd /data && sha256sum a/b/* hello"), sums);
    guest.run("echo 3 >/proc/sys/vm/drop_caches");
    assert_eq!(
        guest.run("cd /data && sha256sum a/b/* hello"),
        sums,
        "and the disk, read again without caches"
    );

    // ACPI: the guest unmounts and powers off; the next boot finds a clean file system.
    guest.run("cd /; sync");
    host.ok(&["vm", "shutdown", "demo"]);
    host.wait_state("demo", "off");
    host.ok(&["vm", "start", "demo"]);
    let mut guest = Linux::booting(&host.console("demo"));
    assert_eq!(guest.run("cd /data && sha256sum a/b/* hello"), sums, "after a reboot");
    let errors = guest.run("dmesg | grep -icE 'ext4-fs error|i/o error|recovery complete' || true");
    assert_eq!(errors, "0", "{}", guest.run("dmesg | tail -n 20"));
}
