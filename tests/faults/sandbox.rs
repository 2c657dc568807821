//! Namespaces for network, processes and mounts. The kernel removes all of them when the fault tests end, however they end.

use std::{
    env,
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Output},
    thread,
    time::Duration,
};

use crate::{
    ext4::{is_root, run},
    support::PATIENCE,
};

/// Set in the process that runs inside the namespaces.
const INSIDE: &str = "ROWLOCK_FAULTS_INSIDE";
/// The address of the fault tests, as replicas see it.
pub(crate) const HARNESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The port of every replica.
pub(crate) const PORT: u16 = 8080;
/// How many replicas a run may scale out to.
pub(crate) const HOSTS: usize = 5;
const PROGRAMS: [&str; 9] =
    ["unshare", "nsenter", "ip", "iptables", "mount", "mkfs.ext4", "redis-server", "redis-cli", "cc"];

/// Starts this program again inside new namespaces. Returns once it runs there.
///
/// # Errors
/// Names what is missing on this machine.
pub(crate) fn enter() -> Result<(), String> {
    if env::var_os(INSIDE).is_some() {
        unmount_disks_of_other_tests();
        return Ok(());
    }
    if !is_root() {
        return Err(
            "the fault tests need root to drop packets, mount disks and set clocks: sudo -E make faults".to_owned()
        );
    }
    let found = |program: &&&str| {
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).exists())
    };
    let missing: Vec<_> = PROGRAMS.iter().filter(|program| !found(program)).copied().collect();
    if !missing.is_empty() {
        return Err(format!("programs are missing: {}; tests/install-deps faults installs them", missing.join(", ")));
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            return Err(format!("{device} is missing: the disk faults need it"));
        }
    }
    let program = env::current_exe().map_err(|e| e.to_string())?;
    let namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    Err(Command::new("unshare")
        .args(namespaces)
        .arg(program)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec()
        .to_string())
}

/// A disk of another test would outlive that test if it stayed mounted in this namespace.
fn unmount_disks_of_other_tests() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for at in mounts.lines().filter_map(|line| line.strip_prefix("rowlock-test ")?.split(' ').next()) {
        let _ = Command::new("umount").args(["-l", at]).status();
    }
}

/// A host for one replica: a network namespace behind a bridge.
pub(crate) struct Host {
    pub(crate) address: Ipv4Addr,
    /// The process that keeps the namespace alive.
    keeper: Child,
}

impl Host {
    /// Creates a bridge and all hosts behind it.
    pub(crate) fn all() -> Vec<Self> {
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "hub", "type", "bridge"]);
        run("ip", &["addr", "add", &format!("{HARNESS}/24"), "dev", "hub"]);
        run("ip", &["link", "set", "hub", "up"]);
        (0..HOSTS).map(Self::new).collect()
    }

    fn new(slot: usize) -> Self {
        let address = Ipv4Addr::new(10, 77, 0, 11 + u8::try_from(slot).expect("few hosts"));
        let keeper = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().expect("unshare runs");
        let (host, interface) = (Self { address, keeper }, format!("host{slot}"));
        host.wait_for_namespace();
        let keeper = host.keeper.id().to_string();
        run("ip", &["link", "add", &interface, "type", "veth", "peer", "name", "eth0", "netns", &keeper]);
        run("ip", &["link", "set", &interface, "master", "hub", "up"]);
        host.run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        host.run(&["ip", "link", "set", "eth0", "up"]);
        host.run(&["ip", "link", "set", "lo", "up"]);
        host
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    /// `unshare` creates the namespace some time after its start.
    fn wait_for_namespace(&self) {
        let ours = std::fs::read_link("/proc/self/ns/net").expect("readable");
        for _ in 0..PATIENCE.as_millis() {
            if std::fs::read_link(self.namespace()).is_ok_and(|theirs| theirs != ours) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("no network namespace was created");
    }

    /// A command that runs on this host. It keeps the process id that it is spawned with.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace())).arg("--").arg(program);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        let output = self.command(Path::new(args[0])).args(&args[1..]).output().expect("nsenter runs");
        assert!(output.status.success(), "{args:?}: {output:?}");
        output
    }

    /// Drops the packets that the rule matches, without an error to the sender.
    pub(crate) fn drop_packets(&self, chain: &str, rule: &[&str]) {
        self.run(&[&["iptables", "-w", "-A", chain, "-p", "tcp"], rule, &["-j", "DROP"]].concat());
    }

    pub(crate) fn stop_dropping_packets(&self) {
        self.run(&["iptables", "-w", "-F"]);
    }

    /// How many packets the present rules have dropped.
    pub(crate) fn dropped_packets(&self) -> u64 {
        let output = self.run(&["iptables", "-w", "-L", "-v", "-x", "-n"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let dropped = |line: &str| {
            let mut words = line.split_whitespace();
            let packets = words.next()?.parse::<u64>().ok()?;
            (words.nth(1) == Some("DROP")).then_some(packets)
        };
        text.lines().filter_map(dropped).sum()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The namespace ends with the process.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
