// SPDX-License-Identifier: GPL-2.0

//! What the layer keeps for a target from its constructor to its destructor, and lends to its data.
//!
//! A target's data live for `'t`, a lifetime that nobody knows: the constructor and the callbacks are written for any. What they
//! get for `'t` ([`Device`], [`Work`], `&'t TargetInfo`, ...) is the layer's. It ends what uses the data, drops the data, and
//! only then takes back what it lent ([`Instance::destroy`]). So the order of a target's fields does not
//! matter, and it need not promise anything.

use super::{
    bindings::dm_target,
    bio::per_bio_size,
    callbacks::TypeObject,
    compat,
    device::{Device, Devices},
    info::{Args, TargetInfo},
    target::{Refused, Target},
    work::{Queue, TargetWork, Work, WorkItem},
};
use core::{marker::PhantomData, mem::MaybeUninit, ptr::NonNull};
use kernel::prelude::*;

/// A target's data and all that is lent to them; `dm_target.private` points to it.
///
/// # Invariants
///
/// - `ti` is the target's, and outlives this.
/// - There is a queue if the target processes bios, or there are works.
/// - `data` are initialised, and pinned, as long as there is a shared reference to the instance: before that, [`Setup`] has the only
///   pointer to it, and makes unique references; after it, [`Instance::destroy`] has. They were made as `T::Data<'t>` for a `'t`
///   that ends when they are dropped. (The type says `'static`, as it must say something.)
/// - Nothing of `lent` changes as long as there is a shared reference.
pub(super) struct Instance<T: Target> {
    lent: Lent<T>,
    data: MaybeUninit<T::Data<'static>>,
}

/// The part of an [`Instance`] that is the layer's.
struct Lent<T: Target> {
    ti: NonNull<dm_target>,
    begin: u64,
    linear_delta: u64,
    // Dropped in this order.
    queue: Option<Queue>,
    works: KVec<KBox<WorkItem<T>>>,
    devices: Devices,
}

impl<T: Target> Instance<T> {
    /// The instance that device-mapper has for `ti`.
    ///
    /// # Safety
    ///
    /// `ti` must be a target of type `T`, for all of `'a` between its constructor's success and its destructor.
    #[inline(always)]
    pub(super) unsafe fn of<'a>(ti: *mut dm_target) -> &'a Self {
        // SAFETY: The constructor's trampoline put it there, and the destructor's takes it back. All that is done to it
        // meanwhile is done by shared references.
        unsafe { &*(*ti).private.cast::<Self>() }
    }

    /// The data.
    #[inline(always)]
    pub(super) fn data<'a, 't>(&'a self) -> &'a T::Data<'t>
    where
        't: 'a,
    {
        let data = self.data.as_ptr().cast::<T::Data<'t>>();
        // SAFETY: Initialised, by the invariant, as there is `self`. They were made by code that works for any lifetime, and are
        // looked at by such code only, within the lifetime for which they were made: so it cannot tell one from another.
        unsafe { &*data }
    }

    /// Its first sector on the mapped device.
    #[inline(always)]
    pub(super) fn begin(&self) -> u64 {
        self.lent.begin
    }

    pub(super) fn info(&self) -> &TargetInfo {
        // SAFETY: By the invariant it is a target that outlives `self`.
        unsafe { TargetInfo::from_raw(self.lent.ti.as_ptr()) }
    }

    /// What a sector has to have added that is sent to where [`Setup::linear`] said last.
    pub(super) fn linear_delta(&self) -> u64 {
        self.lent.linear_delta
    }

    #[cfg(CONFIG_KUNIT)]
    pub(super) fn set_linear_delta(&mut self, delta: u64) {
        self.lent.linear_delta = delta;
    }

    pub(super) fn queue(&self) -> Option<&Queue> {
        self.lent.queue.as_ref()
    }

    /// Makes the target's data as the words of its table line say, and leaves them to `ti`. May sleep.
    ///
    /// # Safety
    ///
    /// `ti` must be a target under construction, of a type that a [`TypeObject`] of `T` is for.
    pub(super) unsafe fn create(ti: *mut dm_target, args: &Args) -> Result<(), Refused> {
        let ti = NonNull::new(ti).ok_or(EINVAL)?;
        // SAFETY: Valid by the requirement, and outlives the data, for whose lifetime `setup` has it.
        let info = unsafe { TargetInfo::from_raw(ti.as_ptr()) };
        let mut instance = KBox::<Self>::new_uninit(GFP_KERNEL).map_err(Error::from)?;
        let lent = Lent {
            ti,
            begin: info.begin(),
            linear_delta: 0,
            queue: None,
            works: KVec::new(),
            devices: Devices::new(ti),
        };
        // (In place: the data may be larger than the stack.)
        // SAFETY: A place in the new allocation. After this, the instance is valid, as `data` need not be initialised.
        // INVARIANT: There is no work, and the data are not initialised.
        let instance = unsafe {
            (&raw mut (*instance.as_mut_ptr()).lent).write(lent);
            instance.assume_init()
        };
        let mut setup = Setup::<T> {
            // INVARIANT: Its own from here on.
            instance: NonNull::from(KBox::leak(instance)),
            info,
            target: PhantomData,
        };
        if T::HAS_PROCESS {
            setup.make_queue()?;
        }
        let instance = setup.instance.as_ptr();
        let data = T::ctr(&mut setup, args)?;
        // SAFETY: The place is valid, not initialised, and stays where it is until the data are dropped. If it fails, it is not
        // touched.
        // INVARIANT: If it does not fail, the data are initialised, and unique references are made no more.
        unsafe { compat::init((&raw mut (*instance).data).cast(), data)? };
        // The initialiser may have used `setup`, and is gone.
        core::mem::forget(setup);
        // SAFETY: Under construction: nobody else uses the target.
        unsafe {
            (*ti.as_ptr()).private = instance.cast();
            (*ti.as_ptr()).per_io_data_size = per_bio_size::<T>() as c_uint;
            // Of a duplicate that `map` keeps or completes, device-mapper would look at the clone, which may be complete by then.
            (*ti.as_ptr()).set_accounts_remapped_io(true);
        }
        // SAFETY: Valid, with initialised data, and left to device-mapper, which calls nothing before this returns.
        for item in unsafe { &(*instance).lent.works } {
            item.enable();
        }
        Ok(())
    }

    /// Ends all that uses the target's data, drops them, and takes back what was lent to them. May sleep.
    ///
    /// # Safety
    ///
    /// As for [`Self::of`], and nothing else may be called for this target any more; no bio may be with it.
    pub(super) unsafe fn destroy(ti: *mut dm_target) {
        // SAFETY: As the requirement says.
        let this = unsafe { (*ti).private.cast::<Self>() };
        // SAFETY: Valid, as the requirement says; works and `process` have shared references, too.
        unsafe { &*this }.stop();
        // SAFETY: Initialised by the invariant. Nothing runs any more that has a reference to them: callbacks by the
        // requirement, works and `process` as they were waited for.
        unsafe { core::ptr::drop_in_place((&raw mut (*this).data).cast::<T::Data<'_>>()) };
        // SAFETY: `create` made it from a box, and it is nobody else's now.
        drop(unsafe { KBox::from_raw(this) });
    }

    /// Ends works and [`Target::process`]. May sleep.
    fn stop(&self) {
        for item in &self.lent.works {
            // The kernel refuses to queue it from now on, and so no other work begins it once more.
            item.disable_sync();
        }
        // Of bios that are complete, `process` may still run.
        if let Some(queue) = &self.lent.queue {
            queue.drain();
        }
    }
}

/// Where most bios go ([`Setup::linear`]): the device.
#[derive(Clone, Copy)]
pub(crate) struct Linear<'t>(pub(super) Device<'t>);

/// A target under construction: what it can ask for.
///
/// # Invariants
///
/// It owns the instance, whose data are not initialised, until `Instance::create` leaves that to the target.
pub(crate) struct Setup<'t, T: Target> {
    instance: NonNull<Instance<T>>,
    info: &'t TargetInfo,
    /// Invariant: this target's, and no other one's.
    target: PhantomData<fn(&'t ()) -> &'t ()>,
}

impl<'t, T: Target> Setup<'t, T> {
    /// What is lent. (Not the data, whose initialiser may have this and be at work.)
    fn lent(&mut self) -> &mut Lent<T> {
        // SAFETY: Owned by the invariant; works have a pointer to it, but are disabled.
        unsafe { &mut (*self.instance.as_ptr()).lent }
    }

    /// The target, for its data to keep.
    pub(crate) fn info(&self) -> &'t TargetInfo {
        self.info
    }

    /// What all targets of the type share.
    pub(crate) fn registration_data(&self) -> &'t T::RegistrationData {
        // SAFETY: The target is of a type that was registered with a `TypeObject` of `T`, which stays
        // as long as there are targets.
        unsafe { TypeObject::<T>::of(self.info).registration_data() }
    }

    /// Opens a device in the table's mode. It is closed when the data have been dropped. May sleep.
    pub(crate) fn device(&mut self, path: &CStr) -> Result<Device<'t>> {
        let dev = self.lent().devices.open(path)?;
        // SAFETY: Open, and closed after `'t`.
        Ok(unsafe { Device::new(dev) })
    }

    /// Says where most bios go ([`super::MapBio::remap_linear`]): the target's sectors lie on `device` in one piece from `start`
    /// on. Asked again, it is the last one that counts.
    pub(crate) fn linear(&mut self, device: Device<'t>, start: u64) -> Linear<'t> {
        let lent = self.lent();
        lent.linear_delta = start.wrapping_sub(lent.begin);
        Linear(device)
    }

    /// A work of the target's: [`TargetWork::run`] is called once for each time that it is queued. It can be queued as soon as
    /// the target's data are complete. May sleep.
    pub(crate) fn work<W: TargetWork<T>>(&mut self) -> Result<Work<'t>> {
        if self.lent().queue.is_none() {
            self.make_queue()?;
        }
        let pointer = self.instance;
        let lent = self.lent();
        let queue = lent.queue.as_ref().ok_or(EINVAL)?;
        let item = WorkItem::new::<W>(pointer, queue)?;
        // SAFETY: The item and its queue stay until after `'t`: the box is kept, or it is dropped here and its work not returned.
        let work = unsafe { Work::new(&item) };
        lent.works.push(item, GFP_KERNEL)?;
        Ok(work)
    }

    fn make_queue(&mut self) -> Result {
        let queue = Queue::new(T::NAME, self.info.name())?;
        self.lent().queue = Some(queue);
        Ok(())
    }

    fn ti(&mut self) -> &mut dm_target {
        // SAFETY: Under construction: device-mapper looks at it when the constructor has returned.
        unsafe { self.lent().ti.as_mut() }
    }

    /// Asks for so many duplicates of each flush, told apart by [`super::MapBio::target_bio_nr`]. None is asked for at first:
    /// flushes are completed without the target.
    pub(crate) fn set_num_flush_bios(&mut self, count: u32) {
        self.ti().num_flush_bios = count;
    }

    /// Asks for so many duplicates of each discard, if the underlying devices know them.
    pub(crate) fn set_num_discard_bios(&mut self, count: u32) {
        self.ti().num_discard_bios = count;
    }

    /// Discards are known, whatever the underlying devices can do.
    pub(crate) fn set_discards_supported(&mut self) {
        self.ti().set_discards_supported(true);
    }

    /// Asks for so many duplicates of each write-zeroes, if the underlying devices know them.
    pub(crate) fn set_num_write_zeroes_bios(&mut self, count: u32) {
        self.ti().num_write_zeroes_bios = count;
    }
}

impl<T: Target> Drop for Setup<'_, T> {
    fn drop(&mut self) {
        // SAFETY: Owned by the invariant, and made from a box; what was lent is not used any more.
        drop(unsafe { KBox::from_raw(self.instance.as_ptr()) });
    }
}
