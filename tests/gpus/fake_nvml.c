/* A fake of NVIDIA's management library, for tests only: the entry points that moiety.gpus uses, with GPUs that are
 * records in a file (FAKE_NVML_STATE), so that what one process sets another one finds.
 *
 * FAKE_NVML_REFUSES=function:code makes a function return that code; FAKE_NVML_KILL_AFTER=n kills the process with
 * SIGKILL right after its n-th limit was set. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct gpu {
    unsigned limit_mw, least_mw, most_mw, locked_mhz, highest_mhz, power_mw, temperature, reasons;
};

static struct gpu *gpus;
static unsigned count, sets;

static int refuses(const char *function) {
    const char *found = getenv("FAKE_NVML_REFUSES");
    size_t length = strlen(function);
    if (found && strncmp(found, function, length) == 0 && found[length] == ':') return atoi(found + length + 1);
    return 0;
}

#define REFUSE int code = refuses(__func__); if (code) return code

static int was_set(void) {
    const char *most = getenv("FAKE_NVML_KILL_AFTER");
    sets += 1;
    if (most && sets == (unsigned)atoi(most)) raise(SIGKILL);
    return 0;
}

int nvmlInitWithFlags(unsigned flags) {
    REFUSE;
    int file = open(getenv("FAKE_NVML_STATE"), O_RDWR);
    struct stat found;
    if (file < 0 || fstat(file, &found)) return 9;
    count = found.st_size / sizeof(struct gpu);
    gpus = mmap(NULL, found.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    return gpus == MAP_FAILED ? 9 : 0;
}
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int code) { return "in the fake's own words"; }
int nvmlDeviceGetCount_v2(unsigned *found) { REFUSE; *found = count; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct gpu **device) { REFUSE; *device = gpus + index; return 0; }
int nvmlDeviceGetUUID(struct gpu *device, char *text, unsigned length) {
    REFUSE;
    snprintf(text, length, "GPU-fa4e0000-0000-0000-0000-%012d", (int)(device - gpus));
    return 0;
}
int nvmlDeviceGetName(struct gpu *device, char *text, unsigned length) {
    REFUSE;
    snprintf(text, length, "Fake H100");
    return 0;
}
int nvmlDeviceGetPowerUsage(struct gpu *device, unsigned *found) { REFUSE; *found = device->power_mw; return 0; }
int nvmlDeviceGetClockInfo(struct gpu *device, int type, unsigned *found) {
    REFUSE;
    *found = device->locked_mhz ? device->locked_mhz : device->highest_mhz;
    return 0;
}
int nvmlDeviceGetMaxClockInfo(struct gpu *device, int type, unsigned *found) {
    REFUSE;
    *found = device->highest_mhz;
    return 0;
}
int nvmlDeviceGetTemperature(struct gpu *device, int sensor, unsigned *found) {
    REFUSE;
    *found = device->temperature;
    return 0;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(struct gpu *device, unsigned long long *found) {
    REFUSE;
    *found = device->reasons;
    return 0;
}
int nvmlDeviceGetMemoryInfo(struct gpu *device, unsigned long long *found) {
    REFUSE;
    found[0] = 80000000000, found[1] = 20000000000, found[2] = 60000000000; /* total, free, used */
    return 0;
}
int nvmlDeviceGetUtilizationRates(struct gpu *device, unsigned *found) {
    REFUSE;
    found[0] = 75, found[1] = 50; /* GPU, memory */
    return 0;
}
int nvmlDeviceGetPowerManagementLimit(struct gpu *device, unsigned *found) {
    REFUSE;
    *found = device->limit_mw;
    return 0;
}
int nvmlDeviceGetPowerManagementLimitConstraints(struct gpu *device, unsigned *least, unsigned *most) {
    REFUSE;
    *least = device->least_mw, *most = device->most_mw;
    return 0;
}
int nvmlDeviceSetPowerManagementLimit(struct gpu *device, unsigned limit) {
    REFUSE;
    device->limit_mw = limit;
    return was_set();
}
int nvmlDeviceSetGpuLockedClocks(struct gpu *device, unsigned least, unsigned most) {
    REFUSE;
    device->locked_mhz = most;
    return was_set();
}
int nvmlDeviceResetGpuLockedClocks(struct gpu *device) {
    REFUSE;
    device->locked_mhz = 0;
    return 0;
}
