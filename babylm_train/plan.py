from babylm_train.tools.plan import main

if __name__ == "__main__":
    main()
