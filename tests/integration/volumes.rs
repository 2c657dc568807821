//! What the start makes of the kind of volume.

use std::{fs, process::Command};

use crate::support::{Bench, On};

/// Builds a library that shows the process another `/proc/self/mountinfo`: every mount has this type, source and options.
pub(crate) fn with_mounts(bench: &Bench, file_system: &str) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let mounts: Vec<String> =
        mounts.lines().filter_map(|line| Some(format!("{} - {file_system}\n", line.split_once(" - ")?.0))).collect();
    let [source, library, list] = ["mounts.c", "mounts.so", "mountinfo"].map(|name| bench.folder().join(name));
    fs::write(&list, mounts.concat()).expect("written");
    let text = format!(
        r#"#include <string.h>
#include <sys/syscall.h>
extern long syscall(long number, ...);
int open64(const char *path, int flags, int mode) {{
    if (strcmp(path, "/proc/self/mountinfo") == 0) path = "{}";
    return syscall(SYS_openat, -100, path, flags, mode);
}}
"#,
        list.display()
    );
    fs::write(&source, text).expect("written");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
    assert!(built.expect("a C compiler").success());
    library.display().to_string()
}

#[test]
fn unsafe_volume_is_refused_unless_accepted() {
    for (file_system, problem) in [
        ("cifs //nas/share rw,vers=3.1.1,soft", "//nas/share (cifs) is refused: its file locks are mandatory"),
        ("nfs nas:/export rw,vers=3,nolock,local_lock=all", "nas:/export (nfs) is refused: nolock keeps file locks"),
        ("nfs4 nas:/export rw,vers=4.2,soft", "nas:/export (nfs4) is refused: soft gives up writes"),
        ("fuse.gcsfuse bucket rw,user_id=0", "bucket (fuse.gcsfuse) is refused: object stores have no file locks"),
    ] {
        let bench = Bench::new(On::Embedded);
        let library = with_mounts(&bench, file_system);
        for arguments in [&["serve"][..], &["append", "--data", "x"]] {
            let output = bench.run(arguments, &[("LD_PRELOAD", &library)]);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{stderr}");
            assert!(stderr.contains(problem) && stderr.contains("; accepted: "), "{stderr}");
            assert!(stderr.contains("ROWLOCK_UNLOCKED_VOLUME=accept") && stderr.lines().count() == 1, "{stderr}");
            assert!(!bench.csv.exists());
        }
    }
    let bench = Bench::new(On::Embedded);
    let library = with_mounts(&bench, "cifs //nas/share rw,vers=3.1.1");
    let accepted = [("LD_PRELOAD", &*library), ("ROWLOCK_UNLOCKED_VOLUME", "accept")];
    let output = bench.run(&["append", "--data", "x"], &accepted);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("only accepted by ROWLOCK_UNLOCKED_VOLUME"), "{stderr}");
}

#[tokio::test]
async fn volume_is_logged_and_measured() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let log = replica.log();
    let line = log.lines().find(|line| line.contains(r#"kind="local""#)).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains(" volume ") && line.contains(r#"hosts="one""#), "{line}");
    let metrics = replica.get("/metrics", &[]).await.text().await.expect("text");
    let known = metrics.lines().find(|line| line.starts_with("rowlock_volume_info{")).expect("a volume");
    assert!(known.contains(r#"kind="local",version="none"} 1"#), "{known}");
}
