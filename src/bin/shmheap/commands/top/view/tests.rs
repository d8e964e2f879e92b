//! What is on the screen: from samples made by hand, and from a heap.

use std::time::{Duration, SystemTime};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::Color;
use shmheap::{Heap, Memory, Stats};

use super::super::super::stat::Lane;
use super::super::sampler::{ClassRow, LaneRow, LockRate, Rate, Sample, Sampler};
use super::super::screen::{Facts, Screen, View};
use crate::map::Map;

/// A lane whose numbers are as wide as they get.
fn lane(number: u16, state: &'static str) -> LaneRow {
    let command = Some(format!("worker-number-{number}"));
    let (pid, thread, holds_lock) = (4_194_304, 4_194_304, state == "stopped");
    let since_ms = 1_700_000_000_000;
    let lane =
        Lane { lane: number, pid, thread, state, command, since_ms, slabs: 123_456, bytes_held: 1_048_000_000, holds_lock };
    LaneRow { lane, rate: Rate { allocated: 999_940.0 - f64::from(number), freed: 999_900.0 } }
}

fn class(size: Option<u64>, allocated: f64) -> ClassRow {
    let rate = Rate { allocated, freed: 999_900.0 };
    ClassRow { size, rate, live: 999_900, live_bytes: 1_048_000_000, blocks: 999_900, slabs: 99_000, orphans: 12 }
}

/// A heap at its busiest.
fn busy() -> Screen {
    let mut stats = Stats::default();
    (stats.capacity, stats.total, stats.used, stats.taken) = (1 << 30, 1_048_000_000, 1_048_000_000, 1_048_000_000);
    (stats.allocated_blocks, stats.free, stats.largest_free, stats.fragmentation) = (999_900, 100, 1_048_000_000, 100);
    let sample = Sample {
        time: SystemTime::UNIX_EPOCH,
        apart: Duration::from_secs(1),
        stats,
        rate: Rate { allocated: 999_940.0, freed: 999_930.0 },
        lock: LockRate { waits: 99_900.0, takeovers: 1, takeovers_ever: 7 },
        classes: [Some(1536), Some(16), None]
            .into_iter()
            .zip([5.0, 50.0, 500.0])
            .map(|(size, rate)| class(size, rate))
            .collect(),
        lanes: vec![lane(1, "alive"), lane(2, "stopped"), lane(3, "dead")],
    };
    let facts = Facts { name: "orders".to_owned(), capacity: 1 << 30, page_size: 4096, created_ms: 0 };
    let mut screen = Screen::new(facts, Duration::from_secs(1), sample.clone());
    screen.show(sample);
    screen.map = Some(Map::of(&heap(), 300).expect("a map"));
    screen
}

fn heap() -> Heap {
    Heap::options().create_in(Memory::zeroed(4 << 20).expect("memory")).expect("a heap")
}

/// What the screen looks like in a terminal of this size.
fn drawn(screen: &Screen, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("memory is a terminal");
    terminal.draw(|frame| super::draw(frame, screen)).expect("memory can be drawn on");
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    let rows = buffer.content.chunks(width);
    rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()).collect()
}

fn text(screen: &Screen, width: u16, height: u16) -> String {
    lines(&drawn(screen, width, height)).join("\n")
}

#[track_caller]
fn expect(text: &str, pieces: &[&str]) {
    for piece in pieces {
        assert!(text.contains(piece), "{piece:?} is missing in\n{text}");
    }
}

#[test]
fn at_80_by_24_everything_useful_is_there_and_whole() {
    let text = text(&busy(), 80, 24);
    expect(
        &text,
        &["orders  1 GiB in pages of 4 KiB  age ?  999.5 MiB of memory", "999.9k blocks", "largest free 999.5 MiB"],
    );
    expect(&text, &["fragmentation 100.0 %", "takeovers 7", "every 1s", " 1 overview ", " 4 map "]);
    expect(
        &text,
        &["used 999.5 MiB, 100.0 %", "alloc 999.9k/s, free 999.9k/s", "lock waits 99.9k/s", "map, 16 KiB a character"],
    );
    expect(
        &text,
        &["3 classes by rate", "SIZE ALLOC/S FREE/S   LIVE", "1.50 KiB       5 999.9k 999.9k", "   large     500"],
    );
    expect(&text, &["3 lanes by rate", "LANE     PID COMMAND  STATE   ALLOC/S      HOLDS"]);
    expect(&text, &["   2 4194304 worker-… stopped  999.9k  999.5 MiB", "alive", "dead"]);
    expect(&text, &["q quit", "space pause", "+/- interval", "tab 1-4 views", "s sort", "? help"]);
    assert!(!text.contains("shows all"));
}

#[test]
fn a_larger_terminal_shows_more_columns_and_longer_names() {
    let text = text(&busy(), 120, 40);
    expect(&text, &["SIZE ALLOC/S FREE/S   LIVE      BYTES    FULL", "worker-number… ", "FREE/S LOCK", "lock: lane 2"]);
    let mut screen = busy();
    screen.view = View::Lanes;
    expect(&self::text(&screen, 120, 40), &["LOCK        FOR  SLABS", "999.9k holds", "123.5k"]);
}

#[test]
fn less_room_is_told_of_and_nothing_is_cut_in_the_middle() {
    let small = text(&busy(), 60, 14);
    expect(
        &small,
        &["80 by 24 shows all", "used 999.5 MiB, 100.0 %", "alloc 999.9k/s, free 999.9k/s", "3 classes by rate", "q quit"],
    );
    assert!(!small.contains("map,"), "{small}");
    expect(&text(&busy(), 40, 5), &["top needs 44 by 8 characters. q quits"]);
}

#[test]
fn no_terminal_is_of_a_size_that_cannot_be_drawn_on() {
    let mut screen = busy();
    for view in View::ALL {
        for has_help in [false, true] {
            (screen.view, screen.has_help, screen.scrolled) = (view, has_help, 2);
            for (width, height) in
                (1..100).step_by(7).flat_map(|width| (1..40).step_by(2).map(move |height| (width, height)))
            {
                drawn(&screen, width, height);
                super::map_cells(Rect::new(0, 0, width, height), view);
            }
        }
    }
}

#[test]
fn tables_are_sorted_as_their_title_says() {
    let mut screen = busy();
    let order = |screen: &Screen| {
        let text = text(screen, 80, 24);
        let at = |size: &str| text.find(size).unwrap_or_else(|| panic!("{size} is missing in\n{text}"));
        let mut sizes = ["    16 B", "1.50 KiB", "   large "];
        sizes.sort_by_key(|size| at(size));
        sizes
    };
    screen.view = View::Classes;
    assert_eq!(order(&screen), ["   large ", "    16 B", "1.50 KiB"]);
    for _ in 0..2 {
        screen.key(KeyEvent::new(KeyCode::Char('s'), KeyModifiers::NONE));
    }
    expect(&text(&screen, 80, 24), &["3 classes by number"]);
    assert_eq!(order(&screen), ["    16 B", "1.50 KiB", "   large "]);
}

#[test]
fn more_rows_than_fit_are_counted_and_can_be_scrolled_to() {
    let mut screen = busy();
    screen.sample.lanes = (1..=50).map(|number| lane(number, "alive")).collect();
    screen.view = View::Lanes;
    expect(&text(&screen, 80, 24), &["lanes 1-18 of 50 by rate"]);
    for _ in 0..9 {
        screen.key(KeyEvent::new(KeyCode::PageDown, KeyModifiers::NONE));
    }
    expect(&text(&screen, 80, 24), &["lanes 33-50 of 50 by rate", "  50 4194304"]);
}

#[test]
fn a_dead_lane_and_a_fresh_takeover_are_red() {
    let buffer = drawn(&busy(), 80, 24);
    for word in ["dead", "takeovers 7"] {
        let lines = lines(&buffer);
        let (y, line) = lines.iter().enumerate().find(|(_, line)| line.contains(word)).expect("it is there");
        let x = line[..line.find(word).expect("it is there")].chars().count();
        assert_eq!(buffer[(x as u16, y as u16)].fg, Color::Red, "{word}");
    }
}

#[test]
fn a_removed_name_and_a_pause_are_told() {
    let mut screen = busy();
    screen.sample.stats.unlinked = true;
    screen.key(KeyEvent::new(KeyCode::Char(' '), KeyModifiers::NONE));
    expect(&text(&screen, 80, 24), &["orders  its name was removed", " PAUSED"]);
}

#[test]
fn names_from_outside_do_not_disturb_the_screen() {
    let mut screen = busy();
    screen.sample.lanes[0].lane.command = Some("a\x1b[2J\nb".to_owned());
    screen.facts.name = "n".repeat(300);
    expect(&text(&screen, 80, 24), &["a [2J b", &format!("{}…", "n".repeat(29)), "1 GiB"]);
}

#[test]
fn the_map_alone_has_a_legend_that_fits() {
    let mut screen = busy();
    screen.view = View::Map;
    expect(&text(&screen, 80, 24), &["map, 16 KiB a character", "F larger", "? damaged", "U-Z and @: orphans, of no lane"]);
}

#[test]
fn a_heap_is_shown_with_what_happened_in_it() {
    let heap = heap();
    let (mut sampler, first) = Sampler::start(&heap).expect("a sound heap");
    let facts = Facts { name: "mine".to_owned(), capacity: heap.capacity(), page_size: heap.page_size(), created_ms: 0 };
    let mut screen = Screen::new(facts, Duration::from_secs(1), first);
    (0..2000).for_each(|_| _ = heap.allocate(224).expect("room"));
    heap.allocate(300_000).expect("room");
    screen.show(sampler.sample(&heap).expect("a sound heap"));
    let area = Rect::new(0, 0, 120, 40);
    screen.map = Some(Map::of(&heap, super::map_cells(area, screen.view)).expect("a map"));
    let text = text(&screen, area.width, area.height);
    expect(
        &text,
        &["mine  4 MiB", "2.00k blocks", "map, 8 KiB a character", "BBBBBBBB", "########", "====", "2 classes by rate"],
    );
    let line = text.lines().find(|line| line.trim_start().starts_with("224 B")).expect("the class is there");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert!(words[2] != "0" && words[3] == "0" && words[4] == "2.00k", "{line}");
    assert!(text.lines().any(|line| line.contains(&std::process::id().to_string()) && line.contains("alive")), "{text}");
}
