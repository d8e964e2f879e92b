//! What two or three processes do with the lock, each to be run in every order.

use super::*;

#[test]
fn two_processes_are_never_inside_together_and_no_wake_up_is_lost() {
    model(5, || {
        let shared = Shared::new(Futex::Patient);
        let visits = |lane| {
            move |process: &mut Process| {
                process.claim(&[lane]);
                process.visit();
                process.visit();
            }
        };
        let other = start(&shared, u32::MAX, visits(1));
        live(&shared, u32::MAX, visits(0));
        join([other]);
        assert_eq!(inherit(&shared), 6);
    });
}

#[test]
fn three_processes_are_never_inside_together_and_no_wake_up_is_lost() {
    model(2, || {
        let shared = Shared::new(Futex::Patient);
        let others = [1, 2].map(|lane| start(&shared, u32::MAX, visitor(lane)));
        live(&shared, u32::MAX, visitor(0));
        join(others);
        assert_eq!(inherit(&shared), 5);
    });
}

#[test]
fn whoever_waits_takes_over_from_a_process_killed_at_any_step() {
    sweep(5, |lifetime| {
        let shared = Shared::new(Futex::Sliced);
        let waiter = start(&shared, u32::MAX, visitor(2));
        let killed = live(&shared, lifetime, visitor(1));
        join([waiter]);
        inherit(&shared);
        killed
    });
}

#[test]
fn two_who_wait_get_by_when_a_third_process_is_killed_at_any_step() {
    sweep(1, |lifetime| {
        let shared = Shared::new(Futex::Deaf);
        let waiters = [1, 2].map(|lane| start(&shared, u32::MAX, visitor(lane)));
        let killed = live(&shared, lifetime, visitor(0));
        join(waiters);
        inherit(&shared);
        killed
    });
}

#[test]
fn of_two_who_wait_for_a_dead_holder_one_takes_over_and_the_other_finds_all_in_order() {
    model(4, || {
        let shared = Shared::new(Futex::Sliced);
        die_inside(&shared, 0);
        let other = start(&shared, u32::MAX, visitor(1));
        live(&shared, u32::MAX, visitor(2));
        join([other]);
        assert_eq!(shared.takeovers.load(SeqCst), 1);
        inherit(&shared);
    });
}

#[test]
fn a_process_killed_at_any_step_of_taking_over_is_taken_over_from_itself() {
    sweep(2, |lifetime| {
        let shared = Shared::new(Futex::Sliced);
        die_inside(&shared, 0);
        let waiter = start(&shared, u32::MAX, visitor(2));
        let killed = live(&shared, lifetime, visitor(1));
        join([waiter]);
        inherit(&shared);
        killed
    });
}

#[test]
fn the_lane_of_a_dead_holder_passes_to_a_newcomer_or_its_lock_to_who_waits_never_both() {
    model(5, || {
        let shared = Shared::new(Futex::Sliced);
        die_inside(&shared, 0);
        let waiter = start(&shared, u32::MAX, visitor(2));
        live(&shared, u32::MAX, |process| {
            process.claim(&[0, 1]);
            let taken = process.visit();
            assert!(taken == Taken::Free || taken == Taken::FromDead(0) && process.lane == 0, "{taken:?}");
        });
        join([waiter]);
        assert_eq!(shared.takeovers.load(SeqCst), 1);
        inherit(&shared);
    });
}

#[test]
fn a_newcomer_in_the_lane_of_a_dead_holder_may_be_killed_at_any_step() {
    sweep(4, |lifetime| {
        let shared = Shared::new(Futex::Deaf);
        die_inside(&shared, 0);
        let waiter = start(&shared, u32::MAX, visitor(2));
        let killed = live(&shared, lifetime, |process| {
            process.claim(&[0, 1]);
            process.visit();
        });
        join([waiter]);
        inherit(&shared);
        killed
    });
}

#[test]
fn a_holder_that_is_alive_is_waited_for_until_the_deadline_and_named() {
    model(3, || {
        let shared = Shared::new(Futex::Sliced);
        let mut holder = Process::new(shared.clone(), u32::MAX);
        holder.claim(&[1]);
        assert_eq!(holder.enter(), Ok(Taken::Free));
        let waiter = start(&shared, u32::MAX, |process| {
            process.claim(&[2]);
            process.slices_left.set(2);
            assert_eq!(process.enter(), Err(1), "the holder does not let go");
        });
        holder.change_pair();
        join([waiter]);
        holder.leave();
        holder.end();
        assert_eq!(inherit(&shared), 3);
    });
}
