//! A contended run, as the parent sees it: it starts the members, lets them run for
//! a while, and reads what they did meanwhile.

use super::arena::{self, Arena, MAX_MEMBERS, Phase};
use super::member::pthread_path;
use super::peers::Player;
use super::pthread::{Pthread, Sharing, Unlinked};
use super::stage::Stage;
use crate::Result;
use crate::crew::Crew;
use crate::segment_file::SegmentFile;
use heirlock::{Participant, Policy, Segment};
use rustix::thread::futex;
use std::fs;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// Who contends, and how.
pub(crate) struct Setup<'a> {
    pub(crate) player: Player,
    pub(crate) members: usize,
    /// On which CPUs, in turn.
    pub(crate) cpus: &'a [usize],
    /// How often the busy loop turns while the lock is held.
    pub(crate) busy: u64,
    /// How long is measured.
    pub(crate) window: Duration,
    /// Whether the members look for bypasses and measure their waits.
    pub(crate) watch: bool,
    /// Whether they take the time of each hand-over.
    pub(crate) timed: bool,
}

/// What all members together did, from the begin to a moment or between two.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sum {
    pub(crate) seconds: f64,
    pub(crate) acquisitions: f64,
    /// Acquisitions after somebody else's.
    pub(crate) handovers: f64,
    /// Futex waits, if the lock counts them; and so on.
    pub(crate) parks: f64,
    pub(crate) wakes: f64,
    pub(crate) barriers: f64,
    /// Context switches, as the kernel counts them.
    pub(crate) voluntary: f64,
    pub(crate) involuntary: f64,
    /// Of members that watch: how often one came before somebody who had waited for
    /// long.
    pub(crate) bypasses: f64,
    /// And the longest wait from the begin to the end.
    pub(crate) longest_ns: f64,
    /// Of members that take the time: from a release to its acquisition, the mean of
    /// the members' medians.
    pub(crate) one_way_ns: f64,
}

impl Sum {
    fn since(self, before: Self) -> Self {
        Self {
            seconds: self.seconds - before.seconds,
            acquisitions: self.acquisitions - before.acquisitions,
            handovers: self.handovers - before.handovers,
            parks: self.parks - before.parks,
            wakes: self.wakes - before.wakes,
            barriers: self.barriers - before.barriers,
            voluntary: self.voluntary - before.voluntary,
            involuntary: self.involuntary - before.involuntary,
            bypasses: self.bypasses - before.bypasses,
            longest_ns: self.longest_ns,
            one_way_ns: self.one_way_ns,
        }
    }

    /// Acquisitions per second; at least one, too.
    pub(crate) fn throughput(&self) -> f64 {
        self.acquisitions.max(1.0) / self.seconds
    }

    /// Changes of the owner per second. (At least one: on a machine that is very busy
    /// it may have been none, by which nothing could be divided.)
    pub(crate) fn handover_rate(&self) -> f64 {
        self.handovers.max(1.0) / self.seconds
    }

    /// Nanoseconds from one owner to the next.
    pub(crate) fn handover_ns(&self) -> f64 {
        self.seconds * 1e9 / self.handovers.max(1.0)
    }

    /// So many of something, for each change of the owner.
    pub(crate) fn per_handover(&self, count: f64) -> f64 {
        count / self.handovers.max(1.0)
    }
}

/// Voluntary and involuntary context switches of a thread so far.
fn switches(pid: u32, tid: u32) -> (f64, f64) {
    let status = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|count| count.trim().parse().ok()).unwrap_or(0.0)
    };
    (field("voluntary_ctxt_switches:"), field("nonvoluntary_ctxt_switches:"))
}

/// What the members have done so far.
fn look(segment: &Segment<Arena>, members: usize, start: Instant) -> Sum {
    let mut sum = Sum { seconds: start.elapsed().as_secs_f64(), ..Sum::default() };
    for place in &segment.places[..members] {
        sum.acquisitions += place.0.acquisitions.load(Relaxed) as f64;
        sum.handovers += place.0.handovers.load(Relaxed) as f64;
        sum.bypasses += place.0.bypasses.load(Relaxed) as f64;
        sum.one_way_ns += place.0.one_way.load(Relaxed) as f64 / members as f64;
        sum.longest_ns = sum.longest_ns.max(place.0.longest.load(Relaxed) as f64);
    }
    // What takes longer to read comes last.
    for place in &segment.places[..members] {
        let participant = Participant::from_bits(place.0.participant.load(Relaxed));
        let counts = participant.and_then(|who| heirlock::statistics(segment, who));
        if let Some(counts) = counts {
            sum.parks += counts.sleeps as f64;
            sum.wakes += counts.wakes as f64;
            sum.barriers += counts.barriers as f64;
        }
    }
    for place in &segment.places[..members] {
        if let Some((pid, tid)) = place.0.taken() {
            let (voluntary, involuntary) = switches(pid, tid);
            sum.voluntary += voluntary;
            sum.involuntary += involuntary;
        }
    }
    sum
}

/// Has members contend for a while.
pub(crate) fn hold(stage: &Stage, setup: &Setup) -> Result<Sum> {
    let (player, members) = (setup.player, setup.members);
    assert!(members <= MAX_MEMBERS, "there are that many places");
    let policy = match player {
        Player::HeirlockThroughput => Policy::Throughput,
        _ => Policy::Fifo,
    };
    // Dropped in the reverse order: first the processes end, then the files go.
    let create = |path: &std::path::Path| arena::create(path, members as u32, policy);
    let (file, segment) = SegmentFile::create(None, "bench", create)?;
    let _pthread = match player {
        Player::Pthread | Player::PthreadRobust => {
            let robust = player == Player::PthreadRobust;
            let path = Unlinked(pthread_path(&file.0));
            Pthread::create(&path.0, if robust { Sharing::Robust } else { Sharing::Plain });
            Some(path)
        }
        _ => None,
    };
    let (processes, threads) = if player.is_of_processes() { (members, 1) } else { (1, members) };
    let cpus: Vec<String> = setup.cpus.iter().map(ToString::to_string).collect();
    let mut more =
        vec![player.argument(), threads.to_string(), setup.busy.to_string(), cpus.join(",")];
    if setup.watch {
        more.push("--watch".into());
    }
    if setup.timed {
        more.push("--timed".into());
    }
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let mut crew = Crew::new("bench-member", &file.0, processes, &more);
    for slot in 0..processes {
        crew.start(slot)?;
    }
    let places = &segment.places[..members];
    let what = format!("{members} members with {}", player.name());
    stage.until(&what, &mut crew, |_| places.iter().all(|place| place.0.taken().is_some()))?;

    let start = Instant::now();
    segment.begin(Phase::Running);
    stage.pause(setup.window / 10)?;
    let before = look(&segment, members, start);
    stage.pause(setup.window)?;
    let after = look(&segment, members, start);
    segment.begin(Phase::Over);
    stage.until(&what, &mut crew, |crew| {
        if player == Player::Switch {
            // Whoever sleeps for the token has missed the end.
            let _ = futex::wake(&segment.token.0, futex::Flags::empty(), u32::MAX);
        }
        crew.running().is_empty()
    })?;
    let mut sum = after.since(before);
    // Also of those who waited to the end.
    let end = look(&segment, members, start);
    (sum.longest_ns, sum.one_way_ns) = (end.longest_ns, end.one_way_ns);
    Ok(sum)
}
