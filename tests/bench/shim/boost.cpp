// Boost.Interprocess as C functions: a managed segment with its default algorithm (best fit by a red-black tree) and
// its default mutex, since processes share it.
#include <boost/interprocess/managed_shared_memory.hpp>
#include <cstddef>
#include <cstdint>
#include <new>

namespace bi = boost::interprocess;
using Segment = bi::managed_shared_memory;

extern "C" {

Segment *shim_create(const char *name, std::size_t size) {
    try {
        return new Segment(bi::create_only, name, size);
    } catch (...) {
        return nullptr;
    }
}

Segment *shim_open(const char *name) {
    try {
        return new Segment(bi::open_only, name);
    } catch (...) {
        return nullptr;
    }
}

void shim_close(Segment *segment) { delete segment; }

bool shim_remove(const char *name) { return bi::shared_memory_object::remove(name); }

unsigned char *shim_base(const Segment *segment) { return static_cast<unsigned char *>(segment->get_address()); }

std::size_t shim_size(const Segment *segment) { return segment->get_size(); }

std::size_t shim_free_memory(const Segment *segment) { return segment->get_free_memory(); }

// Null if there is no memory left.
void *shim_allocate(Segment *segment, std::size_t size) { return segment->allocate(size, std::nothrow); }

void *shim_allocate_aligned(Segment *segment, std::size_t size, std::size_t alignment) {
    return segment->allocate_aligned(size, alignment, std::nothrow);
}

void shim_free(Segment *segment, void *block) { segment->deallocate(block); }
}
