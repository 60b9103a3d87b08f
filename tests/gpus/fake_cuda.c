/* A fake of CUDA's driver, for tests only: the entry points that moiety.gpus uses, with the GPUs of the fake NVML.
 *
 * It numbers them as CUDA's documentation says: in another order than NVML (here backwards) unless CUDA_DEVICE_ORDER is
 * PCI_BUS_ID, and of these what CUDA_VISIBLE_DEVICES names, by number or by the beginning of a UUID, up to the first
 * that there is not. FAKE_CUDA_MIG=1 shows parts of GPUs, which have UUIDs of their own. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST = 16, GPU_BYTES = 32 };

static int shown[MOST], count;

static void uuid_of(int gpu, char text[41]) { snprintf(text, 41, "GPU-fa4e0000-0000-0000-0000-%012d", gpu); }

static int named(const char *name, int gpus, const int order[]) {
    char text[41];
    if (strncmp(name, "GPU-", 4)) {
        char *end;
        long number = strtol(name, &end, 10);
        return end != name && !*end && number >= 0 && number < gpus ? order[number] : -1;
    }
    for (int gpu = 0; gpu < gpus; gpu++) {
        uuid_of(gpu, text);
        if (!strncmp(text, name, strlen(name))) return gpu;
    }
    return -1;
}

int cuInit(unsigned flags) {
    struct stat found;
    if (flags || stat(getenv("FAKE_NVML_STATE"), &found)) return 999;
    int gpus = found.st_size / GPU_BYTES, order[MOST];
    const char *by = getenv("CUDA_DEVICE_ORDER"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    for (int gpu = 0; gpu < gpus; gpu++) order[gpu] = by && !strcmp(by, "PCI_BUS_ID") ? gpu : gpus - 1 - gpu;
    if (!visible) {
        count = gpus;
        memcpy(shown, order, sizeof order);
    } else {
        char *names = strdup(visible);
        for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
            int gpu = named(name, gpus, order);
            if (gpu < 0) break;
            shown[count++] = gpu;
        }
        free(names);
    }
    return count ? 0 : 100;
}
int cuDeviceGetCount(int *found) { *found = count; return 0; }
int cuDeviceGet(int *device, int number) { *device = number; return 0; }
int cuDeviceGetUuid_v2(unsigned char uuid[16], int device) {
    char text[41], *at = text + 4;
    uuid_of(shown[device], text);
    for (int byte = 0; byte < 16; at += 2) {
        if (*at == '-') at++;
        unsigned value;
        sscanf(at, "%2x", &value);
        uuid[byte++] = value;
    }
    if (getenv("FAKE_CUDA_MIG")) uuid[15] ^= 0xff;
    return 0;
}
