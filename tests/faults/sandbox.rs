//! A network, processes and mounts of the harness's own: whatever happens to it, the kernel takes all of them down with it.

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

/// Set once we are inside.
const INSIDE: &str = "ROWLOCK_FAULTS_INSIDE";
/// Where the harness is for the replicas.
pub(crate) const HARNESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Where a replica serves.
pub(crate) const PORT: u16 = 8080;
/// As many hosts as a run may scale out to.
pub(crate) const HOSTS: usize = 5;
const PROGRAMS: [&str; 9] =
    ["unshare", "nsenter", "ip", "iptables", "mount", "mkfs.ext4", "redis-server", "redis-cli", "cc"];

/// Starts this program again in namespaces of its own; goes on in there.
///
/// # Errors
/// What is missing for it.
pub(crate) fn enter() -> Result<(), String> {
    if env::var_os(INSIDE).is_some() {
        leave_others_disks();
        return Ok(());
    }
    if !is_root() {
        return Err("only root may cut networks, fill disks and jump clocks: sudo -E make faults".to_owned());
    }
    let found = |program: &&&str| {
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).any(|folder| folder.join(program).exists())
    };
    let missing: Vec<_> = PROGRAMS.iter().filter(|program| !found(program)).copied().collect();
    if !missing.is_empty() {
        return Err(format!("missing: {}; tests/install-deps faults installs them", missing.join(", ")));
    }
    for device in ["/dev/fuse", "/dev/loop-control"] {
        if !Path::new(device).exists() {
            return Err(format!("{device} is missing: disks cannot be made to fail without it"));
        }
    }
    let itself = env::current_exe().map_err(|e| e.to_string())?;
    let spaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    Err(Command::new("unshare")
        .args(spaces)
        .arg(itself)
        .args(env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec()
        .to_string())
}

/// A test disk that was mounted when we came in would not end with its own test, as long as it stays mounted in here.
fn leave_others_disks() {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    for at in mounts.lines().filter_map(|line| line.strip_prefix("rowlock-test ")?.split(' ').next()) {
        let _ = Command::new("umount").args(["-l", at]).status();
    }
}

/// A host for one replica: a network namespace behind a bridge.
pub(crate) struct Host {
    pub(crate) address: Ipv4Addr,
    /// The namespace is this process's.
    keeper: Child,
}

impl Host {
    /// A bridge, and as many hosts behind it.
    pub(crate) fn all() -> Vec<Self> {
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "hub", "type", "bridge"]);
        run("ip", &["addr", "add", &format!("{HARNESS}/24"), "dev", "hub"]);
        run("ip", &["link", "set", "hub", "up"]);
        (0..HOSTS).map(Self::new).collect()
    }

    fn new(place: usize) -> Self {
        let address = Ipv4Addr::new(10, 77, 0, 11 + u8::try_from(place).expect("few hosts"));
        let keeper = Command::new("unshare").args(["--net", "sleep", "infinity"]).spawn().expect("unshare runs");
        let (host, cable) = (Self { address, keeper }, format!("host{place}"));
        host.wait_for_namespace();
        let keeper = host.keeper.id().to_string();
        run("ip", &["link", "add", &cable, "type", "veth", "peer", "name", "eth0", "netns", &keeper]);
        run("ip", &["link", "set", &cable, "master", "hub", "up"]);
        host.run(&["ip", "addr", "add", &format!("{address}/24"), "dev", "eth0"]);
        host.run(&["ip", "link", "set", "eth0", "up"]);
        host.run(&["ip", "link", "set", "lo", "up"]);
        host
    }

    fn namespace(&self) -> String {
        format!("/proc/{}/ns/net", self.keeper.id())
    }

    /// `unshare` may not have come to it yet.
    fn wait_for_namespace(&self) {
        let ours = std::fs::read_link("/proc/self/ns/net").expect("readable");
        for _ in 0..PATIENCE.as_millis() {
            if std::fs::read_link(self.namespace()).is_ok_and(|theirs| theirs != ours) {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        panic!("no network namespace was made");
    }

    /// A command that runs on this host, under the process id that it is started with.
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

    /// Drops the packets that the rule matches, in silence.
    pub(crate) fn cut(&self, chain: &str, rule: &[&str]) {
        self.run(&[&["iptables", "-w", "-A", chain, "-p", "tcp"], rule, &["-j", "DROP"]].concat());
    }

    /// Lets everything through again.
    pub(crate) fn mend(&self) {
        self.run(&["iptables", "-w", "-F"]);
    }

    /// How many packets were dropped since.
    pub(crate) fn dropped(&self) -> u64 {
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
        // Its namespace goes with it.
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}
