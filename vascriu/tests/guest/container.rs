//! A runc container: runc drives CRIU by itself, and finds the plugin through
//! its CRIU configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::harness::{Test, Workload, bad, good, json, rm, vascriu, vases, wait_until, workloads};
use crate::workload::Options;

/// All tests here.
pub const TESTS: &[Test] = &[
    ("a_container_comes_back_under_another_host_pid", comes_back),
    ("two_copies_of_a_container_run_at_once", two_copies),
    ("a_container_without_its_vas_is_not_restored", vas_gone),
    ("a_container_whose_checkpoint_fails_goes_on", fails),
    ("a_container_without_the_configuration_is_stock", stock),
    (
        "a_container_dumped_past_runc_fails_clearly_and_goes_on",
        past_runc,
    ),
];

/// What CRIU's configuration must hold.
const CONFIG: &str = "libdir /usr/lib/vascriu\n";

/// Where runc has CRIU put its logs: the directory of the tests.
const WORK: &str = "/tmp/vascriu-tests";

/// An OCI bundle whose root is the guest's own, read-only, and whose /mnt is the
/// test's directory.
struct Bundle {
    dir: PathBuf,
    acks: PathBuf,
    config: PathBuf,
}

impl Bundle {
    fn new(dir: &Path) -> Self {
        let bundle = dir.join("bundle");
        let root = bundle.join("rootfs");
        let acks = dir.join("acks");
        for d in [&root, &acks] {
            fs::create_dir_all(d).expect("directory");
        }
        good(Command::new("mount").args(["--bind", "/"]).arg(&root));
        let this = Self {
            dir: bundle,
            acks,
            config: dir.join("criu.conf"),
        };
        fs::write(&this.config, CONFIG).expect("configuration");
        let options = Options {
            dir: "/mnt".into(),
            ..options(&this.acks)
        };
        good(Command::new("runc").arg("spec").current_dir(&this.dir));
        let path = this.dir.join("config.json");
        let mut spec: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).expect("spec")).expect("JSON");
        let exe = std::env::current_exe().expect("this program");
        let mut args = vec![exe.display().to_string()];
        args.extend(options.args());
        spec["process"]["args"] = json!(args);
        spec["process"]["terminal"] = json!(false);
        spec["root"]["readonly"] = json!(true);
        spec["annotations"]["org.criu.config"] = json!(this.config);
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({
            "destination": "/mnt", "source": this.acks, "type": "bind", "options": ["bind", "rw"],
        }));
        fs::write(&path, spec.to_string()).expect("spec");
        this
    }

    fn runc(&self, args: &[&str]) -> Command {
        let mut command = Command::new("runc");
        command.arg("--log").arg(self.dir.join("runc.log"));
        command.args(args).current_dir(&self.dir);
        // The container inherits these.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }

    /// Starts container `id`; its workload has PID 1.
    fn start(&self, id: &str) -> Workload {
        self.good(self.runc(&["run", "-d", id]));
        let options = options(&self.acks);
        let ready = self.acks.join("ready-1");
        wait_until("the container to be ready", || ready.exists());
        Workload::at(self.pid(id), 1, &options.dir)
    }

    fn pid(&self, id: &str) -> i32 {
        let state = json(Command::new("runc").args(["state", id]));
        state["pid"]
            .as_i64()
            .and_then(|p| p.try_into().ok())
            .expect("a PID")
    }

    fn images(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn checkpoint(&self, id: &str) -> Command {
        let mut command = self.runc(&["checkpoint", "--image-path"]);
        command.arg(self.images()).args(["--work-path", WORK, id]);
        command
    }

    fn restore(&self, id: &str) -> Command {
        let mut command = self.runc(&["restore", "-d", "--image-path"]);
        command.arg(self.images()).args(["--work-path", WORK, id]);
        command
    }

    /// Runs what must succeed.
    #[track_caller]
    fn good(&self, mut command: Command) {
        let logs = [
            self.dir.join("runc.log"),
            Path::new(WORK).join("restore.log"),
        ];
        let text = || {
            logs.each_ref()
                .map(|l| fs::read_to_string(l).unwrap_or_default())
                .join("\n")
        };
        assert!(
            command.status().expect("runc").success(),
            "{command:?}: {}",
            text()
        );
    }

    fn delete(&self, id: &str) {
        let _ = self.runc(&["delete", "-f", id]).status();
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.dir.join("rootfs")).status();
    }
}

fn options(dir: &Path) -> Options {
    Options {
        dir: dir.into(),
        mib: 16,
        children: 1,
        threads: 2,
        ..Options::default()
    }
}

/// The names under which vascriu knows the checkpoints of others.
fn registered() -> Vec<String> {
    let rows = json(&mut vascriu(&["ls", "--json"]));
    let rows = rows.as_array().expect("rows");
    rows.iter()
        .filter_map(|r| r["name"].as_str().map(str::to_owned))
        .collect()
}

fn comes_back(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    assert_eq!(w.check(), 1);
    b.good(b.checkpoint("c1"));
    assert!(!w.is_alive());
    assert_eq!(vases().len(), 2);
    b.good(b.restore("c1"));
    let r = Workload::at(b.pid("c1"), 1, &b.acks);
    assert_ne!(r.pid, w.pid, "another host PID");
    assert_eq!(r.check(), 2);
    b.delete("c1");
    let names = registered();
    assert_eq!(names.len(), 1, "vascriu knows it");
    rm(&[&names[0]]);
}

fn two_copies(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    b.good(b.checkpoint("c1"));
    drop(w);
    b.good(b.restore("c1"));
    b.good(b.restore("c2"));
    let (one, two) = ("c1", "c2");
    let copies = [one, two].map(|id| Workload::at(b.pid(id), 1, &b.acks));
    assert_ne!(copies[0].pid, copies[1].pid);
    assert_eq!(copies[0].check(), 1);
    assert_eq!(copies[0].check(), 2);
    assert_eq!(copies[1].check(), 1, "each goes its own way");
    b.delete(one);
    assert_eq!(copies[1].check(), 2);
    b.delete(two);
    rm(&registered().iter().map(String::as_str).collect::<Vec<_>>());
}

fn vas_gone(dir: &Path) {
    let b = Bundle::new(dir);
    b.start("c1");
    b.good(b.checkpoint("c1"));
    let session = vascriu::device::Session::open().expect("session");
    for name in vases() {
        let access = vascriu::device::VAS_ACCESS_READ | vascriu::device::VAS_ACCESS_WRITE;
        session
            .vas_by_name(&name, access)
            .expect("open")
            .delete(false)
            .expect("delete");
    }
    assert!(!b.restore("c1").status().expect("runc").success());
    let log = fs::read_to_string(Path::new(WORK).join("restore.log")).expect("log");
    assert!(log.contains("was deleted"), "{log}");
    assert_eq!(workloads(), Vec::<i32>::new());
    b.delete("c1");
    rm(&registered().iter().map(String::as_str).collect::<Vec<_>>());
}

fn fails(dir: &Path) {
    let b = Bundle::new(dir);
    let w = b.start("c1");
    // No room for the images.
    fs::create_dir(b.images()).expect("directory");
    good(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16k", "x"])
            .arg(b.images()),
    );
    assert!(!b.checkpoint("c1").status().expect("runc").success());
    assert_eq!(w.check(), 1, "it goes on");
    assert_eq!(vases(), Vec::<String>::new());
    good(Command::new("umount").arg(b.images()));
    b.delete("c1");
}

fn stock(dir: &Path) {
    let b = Bundle::new(dir);
    fs::write(&b.config, "").expect("configuration");
    let w = b.start("c1");
    b.good(b.checkpoint("c1"));
    assert_eq!(vases(), Vec::<String>::new());
    assert!(!b.images().join("vas.json").exists());
    drop(w);
    b.good(b.restore("c1"));
    assert_eq!(Workload::at(b.pid("c1"), 1, &b.acks).check(), 1);
    b.delete("c1");
}

fn past_runc(dir: &Path) {
    // What runc's checkpoint needs and a container's own root does not have is
    // CRIU's business; that it is refused clearly is ours.
    let b = Bundle::new(dir);
    let w = b.start("c1");
    bad(
        &mut crate::harness::dump(w.pid, "x"),
        &["CRIU's dump failed", "Error"],
    );
    assert_eq!(w.check(), 1, "and it goes on");
    b.delete("c1");
}
