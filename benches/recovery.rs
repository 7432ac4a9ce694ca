//! From the SIGKILL of an owner to its heir running, as `support/heir.rs` takes the
//! time. Whichever peer is measured, the two take turns, so that both see the same
//! machine.

use criterion::{Criterion, SamplingMode};
use std::cell::RefCell;
use std::process::Command;
use std::time::Duration;

#[path = "support/heir.rs"]
mod heir;
#[path = "support/pin.rs"]
mod pin;
#[path = "support/pthread.rs"]
mod pthread;

use heir::{Heir, PEERS};

/// This program as an owner: `--play owner PEER PATH CPU`.
fn play_owner() -> Command {
    let mut command = Command::new(std::env::current_exe().expect("the own path"));
    command.args(["--play", "owner"]);
    command
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn recovery(criterion: &mut Criterion) {
    let cpus = pin::cpus();
    let (owner_cpu, heir_cpu) = (cpus[0], cpus[cpus.len() - 1]);
    pin::to_cpu(heir_cpu);
    let heirs = PEERS.map(|peer| Heir::start(peer, heir_cpu));
    let times = RefCell::new([Vec::new(), Vec::new()]);

    let mut group = criterion.benchmark_group("recovery");
    group.sampling_mode(SamplingMode::Flat).sample_size(50);
    for (measured, peer) in PEERS.iter().enumerate() {
        group.bench_function(peer.name(), |b| {
            b.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                for iteration in 0..iterations {
                    for turn in 0..2 {
                        let at = (turn + iteration as usize) % 2;
                        let time = heirs[at].recovery(play_owner(), owner_cpu);
                        times.borrow_mut()[at].push(time);
                        if at == measured {
                            total += time;
                        }
                    }
                }
                total
            });
        });
    }
    group.finish();

    let [heirlock, pthread] = &mut *times.borrow_mut();
    let (count, ours, theirs) = (heirlock.len(), median(heirlock), median(pthread));
    let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
    println!("medians of {count} turns: heirlock {ours:?}, pthread_robust {theirs:?}: {ratio:.2}");
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, play, role, peer, path, cpu] = &args[..]
        && play == "--play"
        && role == "owner"
    {
        return heir::owner(peer, path.as_ref(), cpu.parse().expect("a number"));
    }
    let mut criterion = Criterion::default().configure_from_args();
    recovery(&mut criterion);
    criterion.final_summary();
}
