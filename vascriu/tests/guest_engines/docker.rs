// SPDX-License-Identifier: GPL-2.0-only
//! `docker checkpoint` and `docker start --checkpoint`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{
    REDIS, Test, bad, docker_answers, forget, good, sh, snapshot_of, snapshots, status, text, tree,
    vases, wait_until,
};
use crate::redis::{DATA, Redis};

/// What `make test` runs.
pub const TESTS: &[Test] = &[
    ("docker_a_container_comes_back_again_and_again", again),
    ("docker_a_container_left_running_goes_on", left_running),
    (
        "docker_networks_volumes_limits_and_filters_come_back",
        all_of_it,
    ),
    (
        "docker_three_generations_of_a_container_leave_nothing",
        || generations(3),
    ),
];

/// What `make test-all` runs besides.
pub const LONG_TESTS: &[Test] = &[
    ("docker_another_container_starts_from_a_checkpoint", another),
    ("docker_a_checkpoint_outlives_dockerd", restarted),
    (
        "docker_a_checkpoint_may_be_in_a_folder_of_ones_own",
        own_folder,
    ),
    (
        "docker_a_tree_of_thirty_processes_comes_back",
        many_processes,
    ),
    (
        "docker_fifty_generations_of_a_container_leave_nothing",
        || generations(50),
    ),
    (
        "docker_a_checkpoint_whose_snapshot_is_gone_does_not_start",
        snapshot_gone,
    ),
];

/// A container, removed in the end.
pub struct Container(pub &'static str);

impl Container {
    /// `docker run`.
    #[track_caller]
    pub fn run(name: &'static str, options: &[&str], command: &[&str]) -> Self {
        Self::make(&["docker", "run", "-d"], name, options, command)
    }

    /// `docker create`.
    #[track_caller]
    fn create(name: &'static str, options: &[&str], command: &[&str]) -> Self {
        Self::make(&["docker", "create"], name, options, command)
    }

    #[track_caller]
    fn make(verb: &[&str], name: &'static str, options: &[&str], command: &[&str]) -> Self {
        let this = Self(name);
        good(&[verb, &["--name", name], options, &["mvas:1"], command].concat());
        this
    }

    pub fn inspect(&self, what: &str) -> String {
        good(&["docker", "inspect", "-f", what, self.0])
    }

    #[track_caller]
    pub fn pid(&self) -> i32 {
        let pid = self.inspect("{{.State.Pid}}").parse().expect("a PID");
        assert_ne!(pid, 0, "{} does not run", self.0);
        pid
    }

    #[track_caller]
    pub fn redis(&self) -> Redis {
        Redis::of(self.pid())
    }

    #[track_caller]
    pub fn checkpoint(&self, checkpoint: &str, options: &[&str]) {
        let verb = ["docker", "checkpoint", "create"];
        good(&[&verb[..], options, &[self.0, checkpoint]].concat());
        if options.is_empty() {
            // dockerd hears of the end later.
            wait_until("the container to end", || {
                self.inspect("{{.State.Running}}") == "false"
            });
        }
    }

    #[track_caller]
    pub fn start(&self, checkpoint: &str) {
        good(&["docker", "start", "--checkpoint", checkpoint, self.0]);
    }

    #[track_caller]
    pub fn kill(&self) {
        good(&["docker", "kill", self.0]);
        wait_until("the container to end", || {
            self.inspect("{{.State.Running}}") == "false"
        });
    }

    pub fn checkpoints(&self) -> Vec<String> {
        let list = good(&["docker", "checkpoint", "ls", self.0]);
        list.lines().skip(1).map(|l| l.trim().to_owned()).collect()
    }

    /// Where dockerd keeps its checkpoints.
    pub fn folder(&self) -> PathBuf {
        let id = self.inspect("{{.Id}}");
        Path::new("/var/lib/docker/containers")
            .join(id)
            .join("checkpoints")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            good(&["docker", "rm", "-f", "-v", self.0]);
            return;
        }
        for log in [
            "/var/log/dockerd.log",
            "/run/containerd/io.containerd.runtime.v2.task/moby",
        ] {
            let _ = std::process::Command::new("sh")
                .args([
                    "-c",
                    &format!("find {log} -name '*.log' | xargs tail -n 12 >&2"),
                ])
                .status();
        }
        let _ = std::process::Command::new("docker")
            .args(["rm", "-f", "-v", self.0])
            .output();
    }
}

fn again() {
    let c = Container::run("web", &[], &REDIS);
    let digest = c.redis().load();
    c.checkpoint("one", &[]);
    assert_eq!(c.checkpoints(), ["one"]);
    let snapshot = snapshot_of("docker", "web");
    assert_eq!(snapshot["origin"]["id"], c.inspect("{{.Id}}"));

    c.start("one");
    assert_eq!(c.redis().digest(), digest);
    c.redis().mark("later");
    c.kill();
    c.start("one");
    assert_eq!(
        c.redis().digest(),
        digest,
        "as it was, without what came later"
    );

    good(&["docker", "checkpoint", "rm", "web", "one"]);
    assert_eq!(c.checkpoints(), [""; 0]);
    let id = text(&snapshot["id"]);
    // containerd has its copy of the reference a little longer.
    wait_until("nobody to refer to the snapshot", || {
        good(&["vascriu", "prune", "--unreferenced"]).contains(&id[..8])
    });
    good(&["vascriu", "prune", "--unreferenced", "--yes"]);
    assert!(snapshots().is_empty(), "{:?}", snapshots());
    assert_eq!(
        c.redis().digest(),
        digest,
        "whoever was restored keeps its memory"
    );
}

fn left_running() {
    let c = Container::run("web", &[], &REDIS);
    let digest = c.redis().load();
    let pid = c.pid();
    c.checkpoint("one", &["--leave-running"]);
    assert_eq!(c.pid(), pid);
    c.redis().mark("later");
    c.kill();
    c.start("one");
    assert_eq!(c.redis().digest(), digest);
    assert_eq!(snapshot_of("docker", "web")["left_running"], true);
}

fn another() {
    let c = Container::run("web", &[], &REDIS);
    let digest = c.redis().load();
    c.checkpoint("one", &["--leave-running"]);
    let other = Container::create("other", &[], &REDIS);
    let to = other.folder();
    fs::create_dir_all(&to).expect("directory");
    good(&[
        "cp",
        "-a",
        &c.folder().join("one").display().to_string(),
        &to.display().to_string(),
    ]);
    other.start("one");
    assert_eq!(other.redis().digest(), digest);
    other.redis().mark("other");
    assert_eq!(c.redis().digest(), digest, "each goes its own way");
}

fn restarted() {
    let c = Container::run("web", &[], &REDIS);
    let digest = c.redis().load();
    c.checkpoint("one", &[]);
    // PID 1 starts it again.
    sh("kill $(cat /run/docker.pid)");
    wait_until("dockerd to end", || !Path::new("/run/docker.pid").exists());
    docker_answers();
    assert_eq!(c.checkpoints(), ["one"]);
    c.start("one");
    assert_eq!(c.redis().digest(), digest);
}

fn own_folder() {
    let c = Container::run("web", &[], &REDIS);
    let digest = c.redis().load();
    c.checkpoint(
        "one",
        &["--leave-running", "--checkpoint-dir", "/tmp/checkpoints"],
    );
    c.kill();
    // Docker makes checkpoints there, and starts none from there; a copy of the folder will do.
    fs::create_dir_all(c.folder()).expect("directory");
    good(&[
        "cp",
        "-a",
        "/tmp/checkpoints/one",
        &c.folder().display().to_string(),
    ]);
    c.start("one");
    assert_eq!(c.redis().digest(), digest);
    good(&["rm", "-r", "/tmp/checkpoints"]);
}

fn all_of_it() {
    let options = [
        "-p=7000:6379",
        "--memory=64m",
        "--volume=data:/data",
        "--tmpfs=/run",
        "--shm-size=8m",
    ];
    let c = Container::run("web", &options, &REDIS);
    let outside = Redis::Port(7000);
    let digest = outside.load();
    let filter = status(c.pid(), "Seccomp");
    assert_eq!(filter, "2", "Docker's own filter");
    let places = ["/data/volume", "/run/tmpfs", "/dev/shm/shared"];
    for place in places {
        good(&[
            "docker",
            "exec",
            "web",
            "sh",
            "-c",
            &format!("echo {place} >{place}"),
        ]);
    }
    c.checkpoint("one", &[]);
    assert!(std::net::TcpStream::connect(("127.0.0.1", 7000)).is_err());

    c.start("one");
    assert_eq!(outside.digest(), digest);
    for place in places {
        assert_eq!(good(&["docker", "exec", "web", "cat", place]), place);
    }
    assert_eq!(status(c.pid(), "Seccomp"), filter);
    let group = Path::new("/sys/fs/cgroup/docker").join(c.inspect("{{.Id}}"));
    let read = |file: &str| -> u64 {
        let text = fs::read_to_string(group.join(file)).expect("a group");
        text.trim().parse().expect("a number")
    };
    assert_eq!(read("memory.max"), 64 << 20);
    // It pays for what it was restored with, and is held to its limit.
    wait_until("the container to be charged", || {
        read("memory.current") >= DATA
    });
    assert_eq!(outside.ask("DEBUG POPULATE 100000 more 1000"), None);
    wait_until("the container to end by its limit", || {
        c.inspect("{{.State.Running}}") == "false"
    });
    assert_eq!(c.inspect("{{.State.OOMKilled}}"), "true");
    drop(c);
    good(&["docker", "volume", "rm", "data"]);
}

fn many_processes() {
    let script = "for i in $(seq 29); do \
        (n=0; while :; do n=$((n+1)); echo $n >/tmp/n$i; sleep 1; done) & done; wait";
    let c = Container::run("many", &[], &["sh", "-c", script]);
    let count = || {
        let root = format!("/proc/{}/root/tmp", c.pid());
        let names = (1..=29).map(|i| format!("{root}/n{i}"));
        names
            .filter_map(|n| fs::read_to_string(n).ok()?.trim().parse::<u64>().ok())
            .collect::<Vec<_>>()
    };
    wait_until("all to count", || count().len() == 29);
    c.checkpoint("one", &[]);
    let tasks = snapshot_of("docker", "many")["tasks"]
        .as_u64()
        .expect("tasks");
    assert!(tasks >= 30, "{tasks}");
    c.start("one");
    assert!(tree(c.pid()).len() >= 30);
    let before = count();
    wait_until("all to count on", || {
        let after = count();
        after.len() == 29 && after.iter().zip(&before).all(|(a, b)| a > b)
    });
}

/// What may not grow.
#[derive(Debug)]
struct Footprint {
    vases: usize,
    groups: usize,
    depth: usize,
    descriptors: usize,
    /// Memory in use, in MiB.
    used: usize,
}

fn footprint(c: &Container) -> Footprint {
    let number = |script: &str| sh(script).parse().expect("a number");
    Footprint {
        vases: vases().len(),
        groups: number("find /sys/fs/cgroup -type d | wc -l"),
        depth: status(c.pid(), "NSpid").split_whitespace().count(),
        descriptors: number("ls /proc/$(cat /run/docker.pid)/fd | wc -l"),
        used: number("echo 3 >/proc/sys/vm/drop_caches; free -m | awk '/^Mem/{print $2-$7}'"),
    }
}

fn generations(count: u32) {
    let c = Container::run("web", &[], &REDIS);
    let mut digest = c.redis().load();
    let mut first = None;
    for generation in 1..=count {
        let name = format!("g{generation}");
        c.checkpoint(&name, &[]);
        c.start(&name);
        assert_eq!(c.redis().digest(), digest, "generation {generation}");
        c.redis().mark(&name);
        digest = c.redis().digest();
        good(&["docker", "checkpoint", "rm", c.0, &name]);
        forget();
        let now = footprint(&c);
        let first = first.get_or_insert_with(|| footprint(&c));
        assert!(
            now.vases <= first.vases && now.groups <= first.groups && now.depth == first.depth,
            "generation {generation}: {now:?}, the first: {first:?}"
        );
        // Connections of dockerd's come and go, and so does what it has in its heap; fifty
        // times the memory of this container would be much more.
        assert!(
            now.descriptors <= first.descriptors + 8 && now.used <= first.used + 64,
            "generation {generation}: {now:?}, the first: {first:?}"
        );
    }
}

fn snapshot_gone() {
    let c = Container::run("web", &[], &REDIS);
    let digest = c.redis().load();
    c.checkpoint("one", &["--leave-running"]);
    c.kill();
    forget();
    bad(
        &["docker", "start", "--checkpoint", "one", "web"],
        &["criu failed"],
    );
    good(&["docker", "start", "web"]);
    assert_ne!(c.redis().digest(), digest, "an empty one");
}
