//! Runs the targets over random changes of the committed inputs, without asking what they reach: five times as many in the
//! same time as a fuzzer that does, for the breadth that is left when it finds nothing new.
//!
//! `blind SECONDS SEED`: the last line is `blind executions N`. An input that fails is in the file that the first line
//! names.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 3] = [("region", hostile::region), ("scribble", hostile::scribble), ("image", hostile::image)];
/// Longest input that is tried.
const LEN_MAX: usize = 300;
/// Inputs between two looks at the clock.
const ROUND: u64 = 256;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>().expect("a number"));
    let (seconds, seed) = (arguments.next().unwrap_or(10), arguments.next().unwrap_or(1));
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let inputs = TARGETS.map(|(name, _)| {
        let files = fs::read_dir(corpus.join(name)).expect("there is a corpus").flatten();
        files.map(|file| fs::read(file.path()).expect("an input can be read")).collect::<Vec<_>>()
    });
    let path = std::env::temp_dir().join(format!("shmheap-blind-{}", std::process::id()));
    println!("the input that is tried stands in {}", path.display());
    let kept = fs::File::create(&path).expect("a file can be made");
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (begin, mut executions) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..ROUND {
            let which = random.below(TARGETS.len());
            let input = changed(&inputs[which], &mut random);
            // Its length, its target, and then itself: one call, and the kernel keeps it whatever happens here.
            let mut record = vec![u8::try_from(which).expect("small")];
            record.extend((input.len() as u64).to_le_bytes());
            record.extend(&input);
            kept.write_all_at(&record, 0).expect("it can be written");
            TARGETS[which].1(&input);
            executions += 1;
        }
    }
    fs::remove_file(&path).expect("it is ours");
    println!("blind executions {executions}");
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from((self.next() >> 11) % end.max(1) as u64).expect("it is below a usize")
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
}

/// One of the inputs, or the start of one and the end of another, with some bytes changed, added and taken away.
fn changed(inputs: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = inputs[random.below(inputs.len())].clone();
    if random.below(3) == 0 {
        let other = &inputs[random.below(inputs.len())];
        input.truncate(random.below(input.len() + 1));
        input.extend(&other[random.below(other.len() + 1)..]);
    }
    for _ in 0..=random.below(6) {
        let at = random.below(input.len());
        match random.below(5) {
            _ if input.is_empty() => input.push(random.byte()),
            0 => input[at] = random.byte(),
            1 => input[at] ^= 1 << random.below(8),
            2 => input.insert(at, random.byte()),
            3 => _ = input.remove(at),
            _ => {
                let more: Vec<u8> = (0..random.below(24)).map(|_| random.byte()).collect();
                input.splice(at..at, more);
            }
        }
    }
    input.truncate(LEN_MAX);
    input
}
