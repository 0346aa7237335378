//! A merge that cannot go on until somebody does something: the command that deleted the checkpoint says so and ends, the merge waits.

use crate::FIRST;
use crate::tree::layers;
use backstay_e2e::{Host, Micro, wait_for};
use std::process::Stdio;

#[test]
fn a_deletion_does_not_wait_for_ever_for_who_has_a_file_open() {
    let host = Host::start();
    let base = host.create_micro("m", "ide:0:0", &[]);
    host.ok(&["vm", "start", "m"]);
    let (mut guest, _) = Micro::booting(&host.console("m"));
    host.ok(&["checkpoint", "create", "m", "one"]);
    guest.write(FIRST, 0x100, 0x11).unwrap();
    let socket = host.socket().with_file_name("d");
    let (file, at) = (base.to_str().unwrap(), socket.to_str().unwrap());
    let mut reader = host.command(&["disk", "serve", file, "--read-only", "--socket", at]);
    let mut reader = reader.stdout(Stdio::null()).spawn().unwrap();
    wait_for("somebody to have it open", || std::os::unix::net::UnixStream::connect(&socket).ok());

    let told = host.refused(7, &["checkpoint", "delete", "m", "one", "--yes"]);
    assert!(told.contains("is in use by") && told.contains("task wait"), "{told}");
    assert_eq!(host.checkpoints("m"), Vec::<String>::new(), "it is deleted");
    let list = host.json(&["checkpoint", "list", "m"]);
    let task = list["merge_task"].as_str().expect("it goes on").to_owned();
    assert_eq!(host.json(&["task", "show", &task])["state"], "running");
    guest.expect(FIRST, 0x100, 0x11);

    reader.kill().unwrap();
    reader.wait().unwrap();
    wait_for("the merge", || layers(&host).is_empty().then_some(()));
    guest.expect(FIRST, 0x100, 0x11);
}
